"""What was saved, on the canvas: a player on the node, and workflows that come back from the files."""

from __future__ import annotations

import itertools
import json

import pytest
from playwright.sync_api import Page

from api_prompts import Prompt, add, link, node, text_to_song
from comfyui import Server
from workflows import CANVAS_IS_READY, Json, export

pytestmark = pytest.mark.browser

RUN_LIMIT_MS = 180_000
SONG_S = 10
# The element of the widget, which the classic canvas shows; Nodes 2.0 draws a player of its own around another.
PLAYER_IS_READY = """seconds => {
    const {widgets} = window.app.rootGraph.findNodesByType("AceStepSave")[0]
    return Math.abs(widgets.find(({name}) => name === "audioUI").element.duration - seconds) < 0.05
}"""
PAGE_PLAYS = "name => [...document.querySelectorAll('audio')].some(({src}) => src.includes(name))"
WIDGETS = "window.app.rootGraph.findNodesByType('AceStepSave')[0].widgets.map(({name}) => name)"
CHOOSE = """i => {
    const {widgets} = window.app.rootGraph.findNodesByType("AceStepSave")[0]
    const choice = widgets.find(({name}) => name === "take")
    choice.value = choice.options.values[i]
    choice.callback(choice.value)
}"""
OFFERED = """() => window.app.rootGraph.findNodesByType("AceStepSave")[0]
    .widgets.find(({name}) => name === "take").options.values"""
UNDO = """async () => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
    window.app.rootGraph.nodes[0].title = "changed"
    tracker.captureCanvasState()
    await tracker.undo()
}"""
# Every prompt differs from those before it, or ComfyUI would take their results and save nothing.
_number = itertools.count(1)


@pytest.fixture
def page(workbench: tuple[Page, list[str]]) -> Page:
    """One canvas for all tests here, as opening one takes longer than most of them."""
    return workbench[0]


def silence(format: str = "flac") -> tuple[Prompt, float]:
    """Return a prompt that saves some silence, and for how long it lasts."""
    prompt: Prompt = {}
    seconds = next(_number) / 4
    add(prompt, "EmptyAudio", duration=seconds, sample_rate=48_000, channels=2)
    add(prompt, "AceStepSave", audio=link(prompt, "EmptyAudio"), filename_prefix="browser/silence", format=format)
    return prompt, seconds


def three_takes(seed: int) -> Prompt:
    prompt = text_to_song(
        AceStepSong={"duration": SONG_S}, AceStepSample={"takes_per_plan": 3, "steps": 1, "seed": seed}
    )
    prompt = {key: value for key, value in prompt.items() if value["class_type"] not in ("AceStepSave", "SaveAudio")}
    audio, latent = link(prompt, "AceStepDecode"), link(prompt, "AceStepSample")
    add(prompt, "AceStepSave", audio=audio, latent=latent, filename_prefix="browser/takes", format="wav 16-bit")
    return prompt


def run(page: Page, prompt: Prompt, seconds: float) -> None:
    """Open a prompt on the canvas, close to its save node, and run it until the player has what it saved."""
    page.wait_for_function(CANVAS_IS_READY)
    # The canvas wants numbers for ids.
    page.evaluate("prompt => window.app.loadApiJson(prompt, 'test')", json.loads(_numbered(prompt)))
    page.evaluate(
        """() => {
            const node = window.app.rootGraph.findNodesByType("AceStepSave")[0]
            node.title = "kept"
            window.app.canvas.ds.scale = 1
            window.app.canvas.centerOnNode(node)
        }"""
    )
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function(PLAYER_IS_READY, arg=seconds, timeout=RUN_LIMIT_MS)


def saving(exported: Json) -> Json:
    """Return the save node of an exported workflow."""
    (found,) = [node for node in exported["nodes"] if node["type"] == "AceStepSave"]
    return found


def _numbered(prompt: Prompt) -> str:
    return json.dumps(prompt).replace('"added ', '"10')


def test_a_saved_take_can_be_played_on_the_node(page: Page) -> None:
    prompt, seconds = silence()
    prompt[node(prompt, "AceStepSave")]["inputs"]["filename_prefix"] = "browser/alone"
    run(page, prompt, seconds)
    page.wait_for_function(PAGE_PLAYS, arg="filename=alone_")
    assert page.evaluate(WIDGETS) == ["filename_prefix", "format", "audioUI", "result"]
    page.evaluate(UNDO)
    page.wait_for_function(PLAYER_IS_READY, arg=seconds)
    page.wait_for_function(PAGE_PLAYS, arg="filename=alone_")


def test_each_of_several_takes_can_be_played(page: Page) -> None:
    seed = 10 * next(_number)
    run(page, three_takes(seed), SONG_S)
    page.wait_for_function(PAGE_PLAYS, arg=f"_seed{seed}.wav")
    assert page.evaluate(OFFERED) == [f"take {number + 1}, seed {seed + number}" for number in range(3)]
    page.evaluate(CHOOSE, 2)
    page.wait_for_function(PAGE_PLAYS, arg=f"_seed{seed + 2}.wav")
    page.wait_for_function(PLAYER_IS_READY, arg=SONG_S)
    page.evaluate(UNDO)
    page.wait_for_function(PAGE_PLAYS, arg=f"_seed{seed}.wav")
    page.evaluate(CHOOSE, 1)
    page.wait_for_function(PAGE_PLAYS, arg=f"_seed{seed + 1}.wav")


def test_the_player_and_the_choice_are_in_neither_the_workflow_nor_the_prompt(page: Page) -> None:
    run(page, three_takes(10 * next(_number)), SONG_S)
    page.wait_for_function(f"{WIDGETS}.includes('take')")
    workflow, prompt = export(page)
    saved = saving(workflow)
    assert saved["widgets_values"] == ["browser/takes", "wav 16-bit"]
    assert {"audioUI", "take"} & {given["name"] for given in saved["inputs"]} == set()
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == "AceStepSave"]
    assert inputs.keys() == {"audio", "latent", "filename_prefix", "format"}


@pytest.mark.parametrize(("format", "suffix"), [("flac", "flac"), ("mp3 V0", "mp3"), ("opus 128k", "opus")])
@pytest.mark.parametrize("workbench", ["classic"], indirect=True)
def test_a_file_opened_on_the_canvas_brings_its_workflow_back(
    page: Page, server: Server, format: str, suffix: str
) -> None:
    run(page, *silence(format))
    file = max((server.output_dir / "browser").glob(f"silence_*.{suffix}"))
    for opened in (file, file.with_suffix(".json")):
        page.evaluate("window.app.rootGraph.clear()")
        page.set_input_files("#comfy-file-input", opened)
        page.wait_for_function("window.app.rootGraph.nodes.length === 2")
        assert page.get_by_role("dialog").count() == 0
        workflow, _ = export(page)
        assert saving(workflow)["title"] == "kept"
        assert saving(workflow)["widgets_values"] == ["browser/silence", format]
        assert "acestep" not in workflow
