"""The shipped API prompts, changed a little: what server tests submit."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from client import Client, Message, Run
from comfyui import Server

Prompt = dict[str, dict[str, Any]]

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows" / "api"
SHORT_S = 10.0
_new_seed = count(1_000_000)


def text_to_song(workflow: str = "01_text_to_song", **changes: dict[str, Any]) -> Prompt:
    """Return a workflow for a short song; changes maps node classes to inputs, AceStepSample={"seed": 8}."""
    prompt = json.loads((WORKFLOWS / f"{workflow}.json").read_text(encoding="utf-8"))
    changes["AceStepSong"] = {"duration": SHORT_S} | changes.get("AceStepSong", {})
    for name, inputs in changes.items():
        prompt[node(prompt, name)]["inputs"].update(inputs)
    return prompt


def shipped(workflow: str, **changes: dict[str, Any]) -> Prompt:
    """Return a workflow as it is shipped; changes maps node classes to inputs, for every node of the class."""
    prompt = json.loads((WORKFLOWS / f"{workflow}.json").read_text(encoding="utf-8"))
    for name, inputs in changes.items():
        found = [each for each in prompt.values() if each["class_type"] == name]
        assert found, f"{workflow} has no {name}"
        for each in found:
            each["inputs"].update(inputs)
    return prompt


def sketch(**changes: dict[str, Any]) -> Prompt:
    """Return a prompt that samples one step of a short song and saves nothing."""
    changes["AceStepSample"] = {"steps": 1, "seed": next(_new_seed)} | changes.get("AceStepSample", {})
    prompt = text_to_song(**changes)
    for name in ("AceStepSave", "AceStepDecode"):
        del prompt[node(prompt, name)]
    add(prompt, "PreviewAny", source=[node(prompt, "AceStepSample"), 0])
    return prompt


def node(prompt: Prompt, name: str) -> str:
    """Return the id of the only node of a class."""
    (found,) = [key for key, value in prompt.items() if value["class_type"] == name]
    return found


def add(prompt: Prompt, name: str, **inputs: Any) -> str:
    """Add a node to a prompt, a link being [id, slot], and return its id."""
    key = f"added {len(prompt)}"
    prompt[key] = {"class_type": name, "inputs": inputs, "_meta": {"title": name}}
    return key


def link(prompt: Prompt, name: str, slot: int = 0) -> list:
    """Return the link to an output of the only node of a class."""
    return [node(prompt, name), slot]


def cancel_at(client: Client, at: str) -> Callable[[Message], None]:
    """Return a listener that cancels once the node `at` has shown its first progress."""

    def listen(message: Message) -> None:
        if message.kind == "progress" and message.data["node"] == at:
            client.interrupt()

    return listen


def saved(server: Server, run: Run, at: str | None = None) -> list[Path]:
    """Return the audio files that a run saved, or of them those of the node `at`."""
    assert run.ok, run.errors
    outputs = run.outputs.values() if at is None else [run.outputs[at]]
    files = [file for output in outputs for file in output.get("audio", ())]
    return [server.output_dir / file["subfolder"] / file["filename"] for file in files]


def failure(run: Run, prompt: Prompt) -> tuple[str, str]:
    """Return the class of the node that failed and its sentence."""
    assert not run.ok
    (error,) = run.errors
    assert prompt[error["node_id"]]["class_type"] == error["node_type"]
    sentence = error["exception_message"].rstrip("\n")
    assert "\n" not in sentence
    return error["node_type"], sentence


def assert_fails(client: Client, prompt: Prompt, at: str, *words: str) -> Run:
    """Return the run of a prompt, which must fail at a node of class `at` with these words in its one sentence."""
    run = client.run(prompt)
    failed, sentence = failure(run, prompt)
    assert failed == at
    assert [word for word in words if word not in sentence] == [], sentence
    return run
