"""The planner in a live ComfyUI: the shipped workflows, what its cache spares, codes kept in files, bad input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_pack.acestep_core.constants import CODE_RATE, SAMPLE_RATE
from api_prompts import SHORT_S, Prompt, add, assert_fails, cancel_at, link, node, shipped
from client import Client, Run
from comfyui import Server

pytestmark = pytest.mark.server

PACE = r"{n} {unit} in [0-9]+\.[0-9] s, [0-9]+ per second"

# Nothing left to think about but caption and codes.
TOLD = {"duration": SHORT_S, "bpm": 97, "key": "Eb major", "time_signature": "3", "language": "en"}


def sung(**changes: dict[str, Any]) -> Prompt:
    """Return the planned song, short, with nothing left to think about but the codes."""
    changes["AceStepSong"] = TOLD | changes.get("AceStepSong", {})
    changes["AceStepPlan"] = {"think_caption": False} | changes.get("AceStepPlan", {})
    changes["AceStepSample"] = {"steps": 1} | changes.get("AceStepSample", {})
    return shipped("02_plan_and_sing", **changes)


def planned(**changes: dict[str, Any]) -> Prompt:
    """Return the plan of such a song, up to its codes, which are shown as text."""
    prompt = sung(**changes)
    kept = {node(prompt, name) for name in ("AceStepLoadPlanner", "AceStepSong", "AceStepPlan")}
    prompt = {key: value for key, value in prompt.items() if key in kept}
    show_codes(prompt, link(prompt, "AceStepPlan", 1))
    return prompt


def read_back(text: str) -> Prompt:
    """Return a prompt that reads codes from text and writes them as text again."""
    prompt: Prompt = {}
    show_codes(prompt, [add(prompt, "AceStepCodesFromText", text=text), 0])
    return prompt


def show_codes(prompt: Prompt, codes: list) -> None:
    add(prompt, "PreviewAny", source=[add(prompt, "AceStepCodesText", codes=codes), 0])


def shown(prompt: Prompt, run: Run, name: str = "PreviewAny") -> str:
    """Return the text on the only node of a class."""
    assert run.ok, run.errors
    (text,) = run.outputs[node(prompt, name)]["text"]
    return text


def codes_of(client: Client, prompt: Prompt) -> list[str]:
    """Return the codes that a prompt shows, a text for each plan."""
    return shown(prompt, client.run(prompt)).split("\n\n")


def n_codes(text: str) -> int:
    return text.count("<|audio_code_")


def song_of(server: Server, prompt: Prompt, run: Run) -> np.ndarray:
    """Return the samples of the only file a run saved."""
    assert run.ok, run.errors
    (file,) = run.outputs[node(prompt, "AceStepSave")]["audio"]
    samples, sample_rate = soundfile.read(server.output_dir / file["subfolder"] / file["filename"])
    assert sample_rate == SAMPLE_RATE
    assert samples.std() > 1e-3
    return samples


# The workflows as shipped.


def test_a_song_is_planned_and_sung_at_the_length_asked(server: Server, client: Client) -> None:
    prompt = shipped("02_plan_and_sing", AceStepSong={"duration": SHORT_S})
    run = client.run(prompt)
    assert len(song_of(server, prompt, run)) == SHORT_S * SAMPLE_RATE
    blueprint, pace = shown(prompt, run, "AceStepPlan").rsplit("\n\n", 1)
    assert re.fullmatch(PACE.format(n=int(SHORT_S * CODE_RATE), unit="codes"), pace)
    fields = ("bpm:", "caption:", f"duration: {SHORT_S:g}", "keyscale:", "language:", "timesignature:")
    assert [field for field in fields if f"\n{field}" not in blueprint] == []


def test_an_idea_becomes_a_song_of_the_length_the_planner_chose(server: Server, client: Client) -> None:
    # The words of a random planner never end, and are more than the text encoder reads; drawn ones cost twice as much.
    said = {"instrumental": True, "temperature": 0.0}
    plan = {"think_caption": False, "temperature": 0.0}
    prompt = shipped("03_idea_to_song", AceStepIdea=said, AceStepPlan=plan, AceStepSample={"steps": 1})
    info = add(prompt, "AceStepSongInfo", song=link(prompt, "AceStepIdea"))
    language, duration = (add(prompt, "PreviewAny", source=[info, slot]) for slot in (5, 6))
    run = client.run(prompt)
    samples = song_of(server, prompt, run)
    assert len(samples) == float(run.outputs[duration]["text"][0]) * SAMPLE_RATE
    assert run.outputs[language]["text"] == [prompt[node(prompt, "AceStepIdea")]["inputs"]["language"]]


def test_codes_are_described_in_caption_and_lyrics(client: Client) -> None:
    prompt = shipped("04_understand_audio", AceStepUnderstand={"temperature": 0.0})
    run = client.run(prompt)
    texts = {prompt[key]["_meta"]["title"]: run.outputs[key]["text"][0] for key in run.outputs}
    heard = shown(prompt, run, "AceStepUnderstand")
    assert heard.startswith("bpm: ")
    assert texts["Caption"]
    assert texts["Lyrics"]
    described, pace = heard.rsplit("\n\n", 1)
    assert described.endswith(texts["Lyrics"])
    assert re.fullmatch(PACE.format(n="[0-9]+", unit="tokens"), pace)


# What is not done twice, and what a seed decides.


def test_a_knob_of_the_diffusion_model_leaves_the_plan_alone(server: Server, client: Client) -> None:
    first, second = (sung(AceStepSample={"steps": steps, "seed": 41}) for steps in (1, 2))
    before = client.run(first)
    after = client.run(second)
    later = tuple(node(second, name) for name in ("AceStepSample", "AceStepDecode", "AceStepSave"))
    assert after.executed == later
    assert after.cached == second.keys() - set(later)
    assert node(second, "AceStepPlan") in after.cached
    assert not np.array_equal(song_of(server, first, before), song_of(server, second, after))


def test_a_seed_has_the_same_codes_alone_and_in_a_batch(client: Client) -> None:
    batch = codes_of(client, planned(AceStepPlan={"seed": 60, "plans": 3}))
    assert [n_codes(text) for text in batch] == 3 * [SHORT_S * CODE_RATE]
    assert len(set(batch)) == 3
    alone = [codes_of(client, planned(AceStepPlan={"seed": seed})) for seed in (60, 62)]
    assert alone == [[batch[0]], [batch[2]]]


def test_without_codes_to_think_of_the_song_is_made_as_it_is(server: Server, client: Client) -> None:
    prompt = sung(AceStepPlan={"think_codes": False}, AceStepSample={"seed": 42})
    straight = sung(AceStepPlan={"think_codes": False}, AceStepSample={"seed": 42})
    encode = straight[node(straight, "AceStepEncode")]["inputs"]
    save = straight[node(straight, "AceStepSave")]["inputs"]
    encode["song"] = save["song"] = link(straight, "AceStepSong")
    del encode["codes"], save["codes"]
    for name in ("AceStepPlan", "AceStepLoadPlanner"):
        del straight[node(straight, name)]
    one, two = (song_of(server, each, client.run(each)) for each in (prompt, straight))
    assert np.array_equal(one, two)


def test_codes_of_all_plans_count_for_the_pace_which_is_not_in_the_blueprint(client: Client) -> None:
    prompt = planned(AceStepPlan={"seed": 63, "plans": 3})
    blueprint = add(prompt, "PreviewAny", source=link(prompt, "AceStepPlan", 2))
    run = client.run(prompt)
    (text,) = run.outputs[node(prompt, "AceStepPlan")]["text"]
    (told,) = run.outputs[blueprint]["text"]
    assert text.startswith(told + "\n\n")
    assert re.fullmatch(PACE.format(n=int(3 * SHORT_S * CODE_RATE), unit="codes"), text.removeprefix(told + "\n\n"))


# Cancelled.


def test_a_cancel_in_mid_plan_ends_the_run_and_the_next_plan_works(client: Client) -> None:
    told = TOLD | {"duration": 600.0}
    prompt = planned(AceStepSong=told, AceStepPlan={"seed": 80, "plans": 2})
    at = node(prompt, "AceStepPlan")
    run = client.run(prompt, on_message=cancel_at(client, at))
    assert run.interrupted
    assert not run.ok
    assert run.errors == ()
    shown_last = [message for message in run.progress if message["node"] == at][-1]
    assert shown_last["value"] < shown_last["max"] == 600 * CODE_RATE
    assert set(run.executed).isdisjoint({node(prompt, "AceStepCodesText"), node(prompt, "PreviewAny")})
    assert [n_codes(text) for text in codes_of(client, planned(AceStepPlan={"seed": 80}))] == [SHORT_S * CODE_RATE]


# Codes kept.


def test_codes_saved_are_the_codes_loaded(server: Server, client: Client) -> None:
    prompt = planned(AceStepPlan={"seed": 70, "plans": 2})
    codes = link(prompt, "AceStepPlan", 1)
    saver = add(prompt, "AceStepSaveCodes", codes=codes, filename_prefix="codes/test")
    run = client.run(prompt)
    made = shown(prompt, run)
    (file,) = run.outputs[saver]["text"]
    assert file.startswith("codes/test_")
    assert (server.output_dir / file).is_file()

    again: Prompt = {}
    show_codes(again, [add(again, "AceStepLoadCodes", file=file), 0])
    assert shown(again, client.run(again)) == made
    _, options = client.object_info("AceStepLoadCodes")["input"]["required"]["file"]
    assert file in options["options"]


def test_text_is_read_as_the_codes_it_was_written_from(client: Client) -> None:
    (text,) = codes_of(client, planned())
    assert codes_of(client, read_back(text.replace("><", "> \n<") + "\n\n" + text)) == [text, text]
    assert codes_of(client, read_back(text.replace("><", "> \r\n<") + "\r\n \r\n" + text)) == [text, text]


# Bad input: one clear sentence at the node.


def assert_refused(client: Client, prompt: Prompt, at: str, *words: str) -> None:
    assert_fails(client, prompt, at, *words)
    assert client.run(read_back("<|audio_code_1|>")).ok, "the next prompt does not work"


@pytest.mark.parametrize("name", ["qwen_0.6b_ace15.safetensors", "Qwen3-Embedding-0.6B/"])
def test_a_text_encoder_is_no_planner(client: Client, name: str) -> None:
    prompt = planned(AceStepLoadPlanner={"planner": name})
    words = ("is not an ACE-Step 1.5 planner", "it looks like the ACE-Step 1.5 text encoder", "choose a file such as")
    assert_refused(client, prompt, "AceStepLoadPlanner", name.rstrip("/"), *words)


def test_a_song_that_says_nothing_is_not_planned(client: Client) -> None:
    prompt = planned(AceStepSong={"caption": "", "lyrics": " \n"})
    assert_refused(
        client, prompt, "AceStepPlan", "neither caption nor lyrics", "say at least what it should sound like"
    )


def test_a_negative_prompt_without_guidance_is_told(client: Client) -> None:
    prompt = planned(AceStepPlan={"negative": "drums", "cfg_scale": 1.0})
    assert_refused(client, prompt, "AceStepPlan", "negative works with a cfg_scale above 1, got 1; raise it or leave")


def test_lyrics_longer_than_the_planner_reads_are_told(client: Client) -> None:
    prompt = planned(AceStepSong={"lyrics": 33_000 * "la "})
    assert_refused(client, prompt, "AceStepPlan", "exceed the planner's 32768; shorten the lyrics or the song")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<|audio_code_5|><think>", ('"<think>" at character 16', "after 1 codes", "is not an audio code")),
        ("<|audio_code_5|><|audio_code_64000|>", ("audio code 64000 at position 1 is outside 0..63999",)),
    ],
)
def test_text_that_is_no_code_is_named_with_its_place(client: Client, text: str, words: tuple[str, ...]) -> None:
    assert_refused(client, read_back(text), "AceStepCodesFromText", *words)


def test_codes_that_are_empty_are_not_described(client: Client) -> None:
    prompt = shipped("04_understand_audio", AceStepCodesFromText={"text": ""})
    assert_refused(client, prompt, "AceStepUnderstand", "there are no codes to understand")


def test_a_codes_file_that_was_cut_off_is_not_half_read(server: Server, client: Client) -> None:
    path: Path = server.base_dir / "input" / "cut.codes.json"
    path.write_text('{"format": "acestep-codes", "version": 1, "sequences": [[1, 2', encoding="utf-8")
    prompt: Prompt = {}
    show_codes(prompt, [add(prompt, "AceStepLoadCodes", file=path.name), 0])
    try:
        assert_refused(client, prompt, "AceStepLoadCodes", "cut.codes.json is damaged", "column")
    finally:
        path.unlink()
