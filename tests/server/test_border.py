"""Whatever is written into a text, and whatever the log can hold: one sentence or a song, and the next prompt runs.

The server's log is ASCII, the narrowest there is: what can be printed there can be printed anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from acestep_pack.acestep_core.constants import MAX_TEXT_LENGTH
from api_prompts import Prompt, add, shipped, sketch
from client import Client, PromptRejected
from comfyui import Server, install_pack, start
from recordings import write_recordings
from tiny_models import write_comfyui_folders

pytestmark = pytest.mark.server

TEXTS = {
    "half a pair": "x\udfffy",
    "half an emoji": "\ud83d",
    "Japanese": "\u65e5\u672c\u8a9e",
    "emoji": "\U0001f600",
    "minus": "\u2212",
    "too long": " " * (MAX_TEXT_LENGTH + 1),
    "a long name": "n" * 300,
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base_dir = tmp_path_factory.mktemp("narrow")
    install_pack(base_dir)
    write_comfyui_folders(base_dir / "models")
    write_recordings(base_dir / "input")
    with start(base_dir, env={"PYTHONIOENCODING": "ascii"}) as running:
        yield running


def shown(prompt: Prompt, at: str, slot: int = 0) -> Prompt:
    add(prompt, "PreviewAny", source=[at, slot])
    return prompt


def song(**words: str) -> Prompt:
    return sketch(AceStepSong=words)


def codes_from(text: str) -> Prompt:
    prompt: Prompt = {}
    return shown(prompt, add(prompt, "AceStepCodesFromText", text=text))


def saved_codes(prefix: str) -> Prompt:
    prompt: Prompt = {}
    codes = add(prompt, "AceStepCodesFromText", text="1 2 3")
    add(prompt, "AceStepSaveCodes", codes=[codes, 0], filename_prefix=prefix)
    return prompt


def saved_audio(prefix: str = "song", lrc: str = "") -> Prompt:
    prompt: Prompt = {}
    silence = add(prompt, "EmptyAudio", duration=1.0, sample_rate=48_000, channels=2)
    add(
        prompt,
        "AceStepSave",
        audio=[silence, 0],
        filename_prefix=prefix,
        format="wav 16-bit",
        lrc=[add(prompt, "PrimitiveStringMultiline", value=lrc), 0],
    )
    return prompt


def timesteps(client: Client, text: str) -> Prompt:
    prompt: Prompt = {}
    inputs = client.object_info("AceStepSamplerOptions")["input"]["required"]
    defaults = {name: given[1].get("default") for name, given in inputs.items()}
    return shown(prompt, add(prompt, "AceStepSamplerOptions", **{**defaults, "timesteps": text}))


def portable(client: Client, name: str) -> Prompt:
    prompt = sketch()
    (model,) = [key for key, node in prompt.items() if node["class_type"] == "AceStepLoadModel"]
    inputs = client.object_info("AceStepLoadLora")["input"]["required"]
    strengths = {key: 1.0 for key in inputs if key.startswith("strength")}
    adapter = inputs["adapter"][1]["options"][0]
    lora = add(prompt, "AceStepLoadLora", model=[model, 0], adapter=adapter, portable_copy=name, **strengths)
    return shown(prompt, lora, 1)


WAYS = {
    "AceStepSong.caption": lambda client, text: song(caption=text),
    "AceStepSong.lyrics": lambda client, text: song(lyrics=text),
    "AceStepSong.key": lambda client, text: song(key=text),
    "AceStepCodesFromText.text": lambda client, text: codes_from(text),
    "AceStepSaveCodes.filename_prefix": lambda client, text: saved_codes(text),
    "AceStepSave.filename_prefix": lambda client, text: saved_audio(text),
    "AceStepSave.filename_prefix, outside": lambda client, text: saved_audio(f"../{text}"),
    "AceStepSave.lrc": lambda client, text: saved_audio(lrc=text),
    "AceStepSamplerOptions.timesteps": timesteps,
    "AceStepSample.seeds": lambda client, text: sketch(AceStepSample={"seeds": text}),
    "AceStepLoadLora.portable_copy": portable,
    "AceStepIdea.idea": lambda client, text: shipped("03_idea_to_song", AceStepIdea={"idea": text}),
    "AceStepPlan.negative": lambda client, text: shipped("02_plan_and_sing", AceStepPlan={"negative": text}),
}
# Where a text that is fine makes a song, or all of them take the same way.
SOME = dict.fromkeys(("AceStepIdea.idea", "AceStepPlan.negative"), ("half a pair", "too long"))
SOME |= dict.fromkeys(("AceStepSong.caption", "AceStepSong.lyrics"), ("half an emoji", "Japanese", "too long"))


@pytest.mark.parametrize(
    ("way", "text"),
    [(way, text) for way, text in itertools.product(WAYS, TEXTS) if text in SOME.get(way, TEXTS)],
)
def test_a_text_gets_a_sentence_or_runs_and_so_does_the_next_prompt(narrow: Server, way: str, text: str) -> None:
    client = Client(narrow.url)
    try:
        run = client.run(WAYS[way](client, TEXTS[text]), timeout_s=60)
    except PromptRejected:
        run = None
    if run is not None and not run.ok:
        (error,) = run.errors
        sentence = error["exception_message"].rstrip("\n")
        assert "\n" not in sentence
        assert error["exception_type"] in ("ValueError", "RuntimeError"), sentence
        sentence.encode("ascii")
    assert client.run(codes_from(f"1 2 {next(COUNT)}"), timeout_s=60).ok
    assert "Errno" not in narrow.log()


COUNT = itertools.count(3)


def test_every_text_input_of_every_node_is_fed(narrow: Server) -> None:
    known = {way.split(",")[0] for way in WAYS}
    texts = {
        f"{node}.{name}"
        for node, info in Client(narrow.url).object_info().items()
        if node.startswith("AceStep")
        for group in ("required", "optional")
        for name, given in info["input"].get(group, {}).items()
        if given[0] == "STRING"
    }
    assert texts <= known


def test_no_file_was_written_under_a_name_that_some_systems_refuse(narrow: Server) -> None:
    names = [path.name for path in Path(narrow.output_dir).rglob("*")]
    assert [name for name in names if "\udfff" in name or len(name.encode("utf-8", "replace")) > 255] == []
