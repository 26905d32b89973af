"""The library against the nodes: `scripts/sing.py` gives the takes that a live ComfyUI gives for the same seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import sing
from api_prompts import Prompt, node, shipped, text_to_song
from client import Client
from comfyui import Server, comfyui_path

pytestmark = pytest.mark.server

ONE_16_BIT_STEP = 2**-15  # both compute in float32, with other kernels for norms


def by_the_nodes(server: Server, client: Client, prompt: Prompt) -> list[np.ndarray]:
    run = client.run(prompt)
    assert run.ok, run.errors
    files = [file for output in run.outputs.values() for file in output.get("audio", ())]
    return [soundfile.read(server.output_dir / file["subfolder"] / file["filename"])[0] for file in files]


def by_the_library(server: Server, song_file: Path, *arguments: str) -> list[np.ndarray]:
    tokenizer = comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer"
    out = song_file.parent / "out"
    given = [str(song_file), "--models", str(server.base_dir / "models"), "--tokenizer", str(tokenizer)]
    assert sing.main([*given, "--out", str(out), *arguments]) == 0
    return [soundfile.read(path)[0] for path in sorted(out.glob("*.flac"))]


def song_file_of(prompt: Prompt, folder: Path) -> Path:
    """Return a song file, under the official names, of what a prompt's song node says."""
    inputs = dict(prompt[node(prompt, "AceStepSong")]["inputs"])
    renamed = {"key": "keyscale", "time_signature": "timesignature", "language": "vocal_language"}
    path = folder / "song.json"
    path.write_text(json.dumps({renamed.get(name, name): value for name, value in inputs.items()}), encoding="utf-8")
    return path


@pytest.mark.parametrize("n_takes", [1, 2])
def test_the_library_makes_the_samples_of_workflow_01(
    server: Server, client: Client, tmp_path: Path, n_takes: int
) -> None:
    prompt = text_to_song(AceStepSample={"seed": 41, "takes_per_plan": n_takes})
    theirs = by_the_nodes(server, client, prompt)
    ours = by_the_library(server, song_file_of(prompt, tmp_path), "--seed", "41", "--takes", str(n_takes))
    assert len(ours) == len(theirs) == n_takes
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < ONE_16_BIT_STEP
        assert one.std() > 1e-3


def test_the_library_plans_as_the_planner_node_does(server: Server, client: Client, tmp_path: Path) -> None:
    prompt = shipped(
        "02_plan_and_sing", AceStepSong={"duration": 10.0}, AceStepPlan={"seed": 5}, AceStepSample={"seed": 5}
    )
    (theirs,) = by_the_nodes(server, client, prompt)
    (ours,) = by_the_library(server, song_file_of(prompt, tmp_path), "--seed", "5", "--plan")
    assert np.abs(ours - theirs).max() < ONE_16_BIT_STEP


def test_what_is_missing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    song = tmp_path / "song.json"
    song.write_text('{"caption": "a waltz"}', encoding="utf-8")
    assert sing.main([str(song), "--models", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
