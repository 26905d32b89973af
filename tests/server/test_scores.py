"""Scoring in a live ComfyUI: numbers, timed lyrics and a picture of every take, the best kept, the weak repaired."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from acestep_pack.acestep_core.bundle import KEY
from acestep_pack.acestep_core.constants import FRAME_RATE, SAMPLE_RATE
from api_prompts import SHORT_S, Prompt, add, assert_fails, link, node, saved, shipped, text_to_song
from client import Client, Run
from comfyui import Server

pytestmark = pytest.mark.server

# Of the tiny models in folders only this one names the heads that follow the lyrics.
MODEL = {"AceStepLoadModel": {"model": "acestep-v15-xl-turbo/"}}
LYRICS = "[Verse]\nHold the night until it ends\nEvery light a name\n\n[Chorus]\nStay"
LINES = ["[Verse]", "Hold the night until it ends", "Every light a name", "[Chorus]", "Stay"]
SCORES = ["lyrics", "lyrics_coverage", "lyrics_monotonicity", "lyrics_confidence"]


def song(workflow: str = "01_text_to_song", seed: int = 7, n_takes: int = 1, lyrics: str = LYRICS, **changes) -> Prompt:
    """Return a workflow that makes takes of a short song in two steps and scores them; none of it is saved yet."""
    given = {"AceStepSample": {"seed": seed, "takes_per_plan": n_takes, "steps": 2}, "AceStepSong": {"lyrics": lyrics}}
    prompt = text_to_song(workflow, **(MODEL | given | changes))
    for name in ("AceStepSave", "AceStepDecode"):
        del prompt[node(prompt, name)]
    score_lyrics(prompt, link(prompt, "AceStepEncode"), link(prompt, "AceStepSample"))
    return prompt


def score_lyrics(prompt: Prompt, conditioning: list, latent: list, **more) -> str:
    model = link(prompt, "AceStepLoadModel")
    return add(prompt, "AceStepScoreLyrics", model=model, conditioning=conditioning, latent=latent, **more)


def save(prompt: Prompt, latent: list, score: list, prefix: str, **more) -> str:
    """Decode and save takes with their scores, and return the id of the node that saves."""
    decode = {"normalize": True, "peak_dbfs": -1.0, "fade_in": 0.0, "fade_out": 0.0}
    audio = add(prompt, "AceStepDecode", vae=link(prompt, "AceStepLoadVAE"), latent=latent, **decode, **more)
    given = {"audio": [audio, 0], "latent": latent, "score": score}
    return add(prompt, "AceStepSave", filename_prefix=prefix, format="flac", **given)


def pick(prompt: Prompt, latent: list, score: list, count: int = 1, **more) -> str:
    weights = {"weight_lyrics": 1.0, "weight_plan": 0.0, "weight_planned": 0.0} | more
    return add(prompt, "AceStepPickBest", latent=latent, score=score, count=count, **weights)


def text_on(run: Run, at: str) -> list[str]:
    assert run.ok, run.errors
    (text,) = run.outputs[at]["text"]
    return text.splitlines()


def scores_of(path: Path) -> dict[str, float]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))[KEY]["scores"]


def told(lines: list[str]) -> list[float]:
    """Return the score in each line of text on a node."""
    return [float(re.match(r"take \d+.*?: (\d\.\d\d)", line)[1]) for line in lines]


def times_of(lrc: str) -> list[tuple[float, str]]:
    """Return when each line of an LRC begins, in seconds, and its words."""
    found = [re.fullmatch(r"\[(\d\d):(\d\d\.\d\d)\](.+)", line) for line in lrc.split("\n")]
    return [(60 * int(match[1]) + float(match[2]), match[3]) for match in found]


def test_takes_are_scored_and_the_picture_is_on_the_node(server: Server, client: Client) -> None:
    prompt = song(n_takes=3, seed=8_100)
    scoring = node(prompt, "AceStepScoreLyrics")
    saving = save(prompt, link(prompt, "AceStepSample"), [scoring, 0], "scores/take")
    run = client.run(prompt)
    lines = text_on(run, scoring)
    for i, line in enumerate(lines):
        assert re.fullmatch(rf"take {i + 1} \(seed {8_100 + i}\): \d\.\d\d, weakest line '.+' \d\.\d\d", line)

    shown = [(step["value"], step["max"]) for step in run.progress if step["node"] == scoring]
    assert shown[-1] == (3, 3)

    (file,) = run.outputs[scoring]["images"]
    image = Image.open(io.BytesIO(client.view(**file)))
    assert image.width == 1_000
    assert np.asarray(image).std() > 5

    paths = saved(server, run, saving)
    assert [path.name for path in paths] == [f"take_{i + 1:05}_seed{8_100 + i}.flac" for i in range(3)]
    for path, value in zip(paths, told(lines), strict=True):
        scores = scores_of(path)
        assert list(scores) == SCORES
        assert scores["lyrics"] == pytest.approx(value, abs=0.006)
        times = times_of(path.with_suffix(".lrc").read_text(encoding="utf-8"))
        assert [text for _, text in times] == LINES
        assert times == sorted(times, key=lambda line: line[0])
        assert 0 <= times[0][0] <= times[-1][0] <= SHORT_S
        assert path.with_suffix(".srt").read_text(encoding="utf-8").startswith("1\n00:00:")
    assert len({scores_of(path)["lyrics_confidence"] for path in paths}) == 3


def test_a_score_needs_nothing_behind_it(client: Client) -> None:
    prompt = song(seed=8_110)
    assert len(text_on(client.run(prompt), node(prompt, "AceStepScoreLyrics"))) == 1


def test_what_was_scored_is_not_scored_again(client: Client) -> None:
    prompt = song(n_takes=2, seed=8_120)
    scoring = node(prompt, "AceStepScoreLyrics")
    shown = add(prompt, "PreviewAny", source=[pick(prompt, link(prompt, "AceStepSample"), [scoring, 0]), 0])
    assert client.run(prompt).ok
    prompt[node(prompt, "AceStepPickBest")]["inputs"]["count"] = 2
    run = client.run(prompt)
    assert run.executed == (node(prompt, "AceStepPickBest"), shown)
    assert {scoring, node(prompt, "AceStepSample")} <= run.cached


def test_the_lrc_of_the_first_take_is_text(server: Server, client: Client) -> None:
    prompt = song(seed=8_130)
    scoring = node(prompt, "AceStepScoreLyrics")
    saving = save(prompt, link(prompt, "AceStepSample"), [scoring, 0], "scores/lrc")
    shown = add(prompt, "PreviewAny", source=[scoring, 1])
    run = client.run(prompt)
    (path,) = saved(server, run, saving)
    assert text_on(run, shown) == path.with_suffix(".lrc").read_text(encoding="utf-8").split("\n")


def test_the_best_of_plans_and_noises_is_kept_with_its_codes(server: Server, client: Client) -> None:
    prompt = song("02_plan_and_sing", seed=8_140, n_takes=2, AceStepPlan={"plans": 2, "seed": 8_140})
    lyrics, codes = node(prompt, "AceStepScoreLyrics"), link(prompt, "AceStepPlan", 1)
    planner, planned = link(prompt, "AceStepLoadPlanner"), link(prompt, "AceStepPlan")
    plans = add(prompt, "AceStepScorePlan", planner=planner, song=planned, codes=codes, score=[lyrics, 0])
    mixed = {"weight_lyrics": 2.0, "weight_plan": 1.0, "weight_planned": 1.0, "codes": codes}
    picking = pick(prompt, link(prompt, "AceStepSample"), [plans, 0], 2, **mixed)
    saving = save(prompt, [picking, 0], [picking, 1], "scores/best")
    prompt[saving]["inputs"]["codes"] = [picking, 2]
    run = client.run(prompt)
    paths = saved(server, run, saving)

    assert all(re.match(r"plan [12]: \d\.\d\d \(caption \d", line) for line in text_on(run, plans))
    assert all(", plan alone " in line for line in text_on(run, lyrics))
    picked = text_on(run, picking)
    seeds = [int(re.match(r"take \d of 4 \(seed (\d+)\)", line)[1]) for line in picked]
    assert [path.name for path in paths] == [f"best_{i + 1:05}_seed{seed}.flac" for i, seed in enumerate(seeds)]
    assert told(picked) == sorted(told(picked), reverse=True)
    for path, value in zip(paths, told(picked), strict=True):
        scores = scores_of(path)
        assert {"lyrics", "lyrics_planned", "plan", "plan_caption", "plan_lyrics"} <= set(scores)
        mean = (2 * scores["lyrics"] + scores["plan"] + scores["lyrics_planned"]) / 4
        assert value == pytest.approx(mean, abs=0.006)
        assert path.with_suffix(".codes.json").is_file()
        assert soundfile.info(path).duration == pytest.approx(SHORT_S, abs=0.3)


def test_weak_lines_are_sung_again_and_the_better_take_is_kept(server: Server, client: Client) -> None:
    prompt = song(seed=8_150)
    first, sung = node(prompt, "AceStepScoreLyrics"), link(prompt, "AceStepSample")
    weak = add(prompt, "AceStepWeakLines", score=[first, 0], threshold=1.0, most=1, padding=0.0)
    task = add(prompt, "AceStepRepaint", source=sung, mask=[weak, 0], mode="balanced", strength=0.5)
    encoded = prompt[node(prompt, "AceStepEncode")]["inputs"] | {"task": [task, 0]}
    again = add(prompt, "AceStepEncode", **encoded)
    settings = prompt[node(prompt, "AceStepSample")]["inputs"] | {"seed": 8_151}
    repainted = add(prompt, "AceStepSample", **settings | {"conditioning": [again, 0], "latent": [again, 1]})
    second = score_lyrics(prompt, [again, 0], [repainted, 0])
    best = pick(prompt, sung, [first, 0], latent_2=[repainted, 0], score_2=[second, 0])
    both = pick(prompt, sung, [first, 0], 2, latent_2=[repainted, 0], score_2=[second, 0])
    shown = add(prompt, "PreviewAny", source=[weak, 1])
    saving = save(prompt, [best, 0], [best, 1], "scores/repaired")
    saving_both = save(prompt, [both, 0], [both, 1], "scores/both")
    alone = save(prompt, [repainted, 0], [second, 0], "scores/repainted", task=[task, 0])
    run = client.run(prompt)

    (path,) = saved(server, run, saving)
    before, after = (told(text_on(run, scoring))[0] for scoring in (first, second))
    assert scores_of(path)["lyrics"] == pytest.approx(max(before, after), abs=0.006)
    assert told(text_on(run, both)) == sorted((before, after), reverse=True)
    (said,) = text_on(run, weak)
    (words,) = text_on(run, shown)
    assert said.startswith(f"take 1: '{words}' ")
    start, stop = map(float, re.search(r"repaint: ([\d.]+)–([\d.]+) s of", text_on(run, task)[0]).groups())
    assert 0 < stop - start < SHORT_S
    assert stop - start >= 1 / FRAME_RATE
    (repaint,) = saved(server, run, alone)
    assert soundfile.info(repaint).frames == pytest.approx(SHORT_S * SAMPLE_RATE, abs=SAMPLE_RATE // FRAME_RATE)
    assert [text for _, text in times_of(repaint.with_suffix(".lrc").read_text(encoding="utf-8"))] == LINES
    assert len(saved(server, run, saving_both)) == 2


def test_no_weak_line_gives_the_song_back_without_a_run(client: Client) -> None:
    prompt = song(seed=8_160)
    weak = add(
        prompt, "AceStepWeakLines", score=link(prompt, "AceStepScoreLyrics"), threshold=0.0, most=0, padding=0.25
    )
    source = link(prompt, "AceStepSample")
    task = add(prompt, "AceStepRepaint", source=source, mask=[weak, 0], mode="balanced", strength=0.5)
    encoded = prompt[node(prompt, "AceStepEncode")]["inputs"] | {"task": [task, 0]}
    again = add(prompt, "AceStepEncode", **encoded)
    settings = prompt[node(prompt, "AceStepSample")]["inputs"]
    repainted = add(prompt, "AceStepSample", **settings | {"conditioning": [again, 0], "latent": [again, 1]})
    add(prompt, "PreviewAny", source=[repainted, 0])
    run = client.run(prompt)
    assert text_on(run, weak) == ["take 1: no line is weak"]
    assert text_on(run, repainted) == ["nothing to generate: the source as it is"]


def test_an_instrumental_has_nothing_to_align(server: Server, client: Client) -> None:
    prompt = song(seed=8_170, lyrics="[Instrumental]")
    scoring = node(prompt, "AceStepScoreLyrics")
    saving = save(prompt, link(prompt, "AceStepSample"), [scoring, 0], "scores/instrumental")
    run = client.run(prompt)
    assert text_on(run, scoring) == ["nothing to align"]
    assert "images" not in run.outputs[scoring]
    (path,) = saved(server, run, saving)
    assert scores_of(path) == {}
    assert not path.with_suffix(".lrc").exists()


# Bad input: one clear sentence at the node.


def test_a_model_whose_heads_nobody_knows_says_so(client: Client) -> None:
    prompt = song(AceStepLoadModel={"model": "acestep-v15-turbo/"}, AceStepSample={"steps": 1, "seed": 8_180})
    assert_fails(client, prompt, "AceStepScoreLyrics", "which heads follow the lyrics is known for", "config.json")


def test_more_picks_than_takes_say_so(client: Client) -> None:
    prompt = song(seed=8_200, n_takes=2)
    picking = pick(prompt, link(prompt, "AceStepSample"), link(prompt, "AceStepScoreLyrics"), 3)
    add(prompt, "PreviewAny", source=[picking, 0])
    assert_fails(client, prompt, "AceStepPickBest", "3 takes cannot be picked of 2; pick 1 to 2")


# The workflows as shipped.


@pytest.mark.parametrize(
    ("workflow", "n_takes"),
    [("17_best_of_n", 2), ("18_repair_weak_lines", 1), ("19_karaoke_lrc", 1), ("20_autogen", 1)],
)
def test_a_workflow_leaves_audio_timed_lyrics_and_scores(
    server: Server, client: Client, workflow: str, n_takes: int
) -> None:
    changes = {"AceStepSong": {"duration": 10.0}}
    if workflow != "19_karaoke_lrc":
        changes["AceStepSample"] = {"steps": 1}
    prompt = shipped(workflow, **changes)
    run = client.run(prompt)
    assert run.ok, run.errors
    files = run.outputs[node(prompt, "AceStepSave")]["audio"]
    assert len(files) == n_takes
    for file in files:
        audio = server.output_dir / file["subfolder"] / file["filename"]
        assert audio.is_file()
        assert audio.with_suffix(".lrc").read_text(encoding="utf-8").startswith("[00:")
        assert audio.with_suffix(".srt").is_file()
        said = json.loads(audio.with_suffix(".json").read_text(encoding="utf-8"))["acestep"]
        assert 0 <= said["scores"]["lyrics"] <= 1
    scorers = [key for key, value in prompt.items() if value["class_type"] == "AceStepScoreLyrics"]
    for scorer in scorers:
        (image,) = run.outputs[scorer]["images"]
        assert client.view(**image).startswith(b"\x89PNG")
