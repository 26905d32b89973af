"""Takes saved by a live ComfyUI: what comes back from each kind of file, and what it refuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from acestep_pack.acestep_core.bundle import KEY
from acestep_pack.acestep_core.codes import files as codes_file
from acestep_pack.acestep_core.types import SongSpec
from api_prompts import Prompt, add, link, node, text_to_song
from client import Client, Run
from comfyui import Server

pytestmark = pytest.mark.server

FORMATS = (
    "flac",
    "wav 16-bit",
    "wav 24-bit",
    "wav 32-bit float",
    "mp3 V0",
    "mp3 320k",
    "mp3 128k",
    "opus 128k",
    "opus 192k",
)
BITS = {"flac": 24, "wav 16-bit": 16, "wav 24-bit": 24, "wav 32-bit float": 25}
WORKFLOW = {"id": "a", "nodes": [{"title": 'ä "quoted" }{ 歌'}], "links": [], "version": 0.4}
METADATA = ("prompt", "workflow")
_number = itertools.count()


def music(seconds: float, sample_rate: int, n_channels: int) -> np.ndarray:
    """Return [S, C] of tones, one a channel, and a little noise."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    tones = np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in (220, 331)[:n_channels]], axis=1)
    return (tones + 0.02 * np.random.default_rng(1).standard_normal(tones.shape)).astype(np.float32)


@pytest.fixture
def recordings(server: Server) -> Iterator[Path]:
    """ComfyUI's input folder, without what a test puts there when it is over."""
    folder = server.base_dir / "input"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


def loaded(recordings: Path, samples: np.ndarray, sample_rate: int) -> Prompt:
    """Return the prompt of core's node that loads samples; never one that ComfyUI has a cached result of."""
    name = f"saved {next(_number)}.wav"
    soundfile.write(recordings / name, samples, sample_rate, subtype="FLOAT")
    prompt: Prompt = {}
    add(prompt, "LoadAudio", audio=name)
    return prompt


def saving(prompt: Prompt, audio: str, format: str = "flac", prefix: str = "audio/test", **inputs) -> Prompt:
    """Return a prompt with our save node behind the only node of a class."""
    add(prompt, "AceStepSave", audio=link(prompt, audio), filename_prefix=prefix, format=format, **inputs)
    return prompt


def saved(server: Server, prompt: Prompt, run: Run) -> list[Path]:
    assert run.ok, run.errors
    files = run.outputs[node(prompt, "AceStepSave")]["audio"]
    assert {file["type"] for file in files} == {"output"}
    return [server.output_dir / file["subfolder"] / file["filename"] for file in files]


def beside(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def sent(prompt: Prompt) -> Prompt:
    """Return a kept prompt as it was sent: ComfyUI notes in it what it knows of the files of its loaders."""
    return {key: {name: value[name] for name in value if name != "is_changed"} for key, value in prompt.items()}


@pytest.mark.parametrize(("sample_rate", "n_channels"), [(48_000, 2), (44_100, 1)])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_saved_comes_back(
    server: Server, client: Client, recordings: Path, format: str, sample_rate: int, n_channels: int
) -> None:
    given = music(2.3, sample_rate, n_channels)
    prompt = saving(loaded(recordings, given, sample_rate), "LoadAudio", format)
    run = client.run(prompt, extra_data={"extra_pnginfo": {"workflow": WORKFLOW}})
    (path,) = saved(server, prompt, run)

    samples, rate = soundfile.read(path, always_2d=True)
    if format in BITS:
        assert rate == sample_rate
        np.testing.assert_allclose(samples, given, atol=2.0 ** -BITS[format] + 1e-9)
    else:
        assert rate == (48_000 if "opus" in format else sample_rate)
        expected = given if rate == sample_rate else music(2.3, rate, n_channels)
        assert abs(len(samples) - len(expected)) <= 1
        n_samples = min(len(samples), len(expected))
        assert np.corrcoef(samples[:n_samples].ravel(), expected[:n_samples].ravel())[0, 1] > 0.99

    with av.open(str(path)) as file:
        tags = {**file.metadata, **file.streams.audio[0].metadata}
    found = json.loads(tags["comment"]) if path.suffix == ".wav" else {key: json.loads(tags[key]) for key in METADATA}
    assert sent(found["prompt"]) == prompt
    assert found["workflow"] == WORKFLOW

    content = beside(path)
    ours = content.pop(KEY)
    assert content == WORKFLOW
    assert sent(ours["prompt"]) == prompt
    assert ours["audio"]["file"] == path.name
    assert ours["audio"]["format"] == format
    assert ours["audio"]["duration_s"] == pytest.approx(2.3, abs=1e-4)


@pytest.mark.parametrize("format", ["flac", "wav 24-bit", "mp3 V0", "opus 128k"])
def test_core_loads_what_we_saved(server: Server, client: Client, recordings: Path, format: str) -> None:
    given = music(1.0, 48_000, 2)
    prompt = saving(loaded(recordings, given, 48_000), "LoadAudio", format)
    (path,) = saved(server, prompt, client.run(prompt))
    (recordings / path.name).write_bytes(path.read_bytes())
    again: Prompt = {}
    add(again, "LoadAudio", audio=path.name)
    saving(again, "LoadAudio", "wav 32-bit float")
    samples, _ = soundfile.read(saved(server, again, client.run(again))[0])
    # MP3 and Opus as FFmpeg decodes them may begin with what the encoder put before the sound.
    assert abs(len(samples) - 48_000) < 3_000
    if format in BITS:
        np.testing.assert_allclose(samples, given, atol=2e-7)


def test_takes_are_bundles_that_can_be_sung_again(server: Server, client: Client) -> None:
    prompt = text_to_song(AceStepSample={"seed": 4_100, "takes_per_plan": 2, "steps": 2})
    prompt = {key: value for key, value in prompt.items() if value["class_type"] not in ("AceStepSave", "SaveAudio")}
    text = "".join(f"<|audio_code_{code}|>" for code in range(50))
    codes = [add(prompt, "AceStepCodesFromText", text=text), 0]
    prompt[node(prompt, "AceStepEncode")]["inputs"]["codes"] = codes
    lrc = [add(prompt, "PrimitiveStringMultiline", value="[00:01.00] 歌う"), 0]
    song, latent = link(prompt, "AceStepSong"), link(prompt, "AceStepSample")
    saving(prompt, "AceStepDecode", prefix="bundle/song", song=song, latent=latent, codes=codes, lrc=lrc)
    run = client.run(prompt)
    paths = saved(server, prompt, run)
    assert [path.name for path in paths] == ["song_00001_seed4100.flac", "song_00002_seed4101.flac"]
    assert run.outputs[node(prompt, "AceStepSave")]["text"] == ["\n".join(f"bundle/{path.name}" for path in paths)]
    for path, seed in zip(paths, (4_100, 4_101), strict=True):
        ours = beside(path)[KEY]
        assert ours["prompt"] == prompt
        assert ours["take"]["seed"] == seed
        assert ours["take"]["n_steps"] == 2
        told = prompt[node(prompt, "AceStepSong")]["inputs"]
        kept = SongSpec(**ours["song"])
        assert (kept.caption, kept.lyrics, kept.duration_s) == (told["caption"], told["lyrics"], told["duration"])
        assert codes_file.load(path.with_suffix(".codes.json")).sequences == (tuple(range(50)),)
        assert path.with_suffix(".lrc").read_text(encoding="utf-8") == "[00:01.00] 歌う"
    assert len(list(paths[0].parent.iterdir())) == 8

    # The second take, from what its own JSON says.
    again = json.loads(json.dumps(beside(paths[1])[KEY]["prompt"]))
    again[node(again, "AceStepSample")]["inputs"].update(seed=4_101, takes_per_plan=1)
    (alone,) = saved(server, again, client.run(again))
    np.testing.assert_allclose(soundfile.read(alone)[0], soundfile.read(paths[1])[0], atol=1e-3)


def test_another_format_runs_only_the_save_node(server: Server, client: Client, recordings: Path) -> None:
    prompt = saving(loaded(recordings, music(1.0, 48_000, 2), 48_000), "LoadAudio")
    assert client.run(prompt).ok
    save = node(prompt, "AceStepSave")
    prompt[save]["inputs"]["format"] = "mp3 V0"
    run = client.run(prompt)
    assert run.executed == (save,)
    assert saved(server, prompt, run)[0].suffix == ".mp3"


# What it refuses.


def sentence(client: Client, prompt: Prompt) -> str:
    """Return what the save node says when it fails, having checked that it is one sentence."""
    run = client.run(prompt)
    (error,) = run.errors
    assert error["node_type"] == "AceStepSave"
    assert error["exception_type"] == "ValueError"
    said = error["exception_message"].rstrip("\n")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("prefix", ["../song", "/tmp/song", "audio/../../song", "..\\song", "C:\\song"])
def test_a_prefix_that_leads_out_of_the_output_folder_is_refused(
    server: Server, client: Client, recordings: Path, prefix: str
) -> None:
    prompt = saving(loaded(recordings, music(0.1, 48_000, 2), 48_000), "LoadAudio", prefix=prefix)
    before = set(server.base_dir.glob("*"))
    assert "leads out of ComfyUI's output folder" in sentence(client, prompt)
    assert set(server.base_dir.glob("*")) == before


def test_a_folder_that_cannot_be_written_to_is_named(server: Server, client: Client, recordings: Path) -> None:
    blocked = server.output_dir / "blocked"
    blocked.write_text("a file where a folder should be")
    prompt = saving(loaded(recordings, music(0.1, 48_000, 2), 48_000), "LoadAudio", prefix="blocked/song")
    said = sentence(client, prompt)
    blocked.unlink()
    assert f"no folder {blocked}" in said


def test_more_than_two_channels_are_refused(client: Client, recordings: Path) -> None:
    prompt = saving(loaded(recordings, np.zeros((4_800, 8), np.float32), 48_000), "LoadAudio")
    assert sentence(client, prompt) == "the audio has 8 channels; mix it down to stereo first"
