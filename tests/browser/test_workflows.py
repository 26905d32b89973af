"""The workflows people open, in the real frontend, and what our nodes show on it after a run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from workflows import API, CANVAS_IS_READY, LAYOUTS, PROJECT, WORKFLOWS, Json, export, read

pytestmark = pytest.mark.browser

NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))

# Until every node has kept its place and size for two tenths of a second in which frames were drawn.
UNTIL_STILL = """async () => {
    const look = () => JSON.stringify(window.app.rootGraph.nodes.map((node) => [...node.boundingRect]))
    let before = look()
    for (let still = 0; still < 2; ) {
        await new Promise((resume) => setTimeout(() => requestAnimationFrame(resume), 100))
        const now = look()
        still = now === before ? still + 1 : 0
        before = now
    }
}"""
RUN_LIMIT_MS = 180_000
# One for each module in web/; the frontend says no more of a broken one than "not defined", and not where.
OUR_EXTENSIONS = {
    "acestep.created.AceStepSong",
    "acestep.declared.AceStepSave",
    "acestep.output.takes",
    "acestep.output.text",
    "acestep.wires",
}
TURBO_SUMMARY = "8 steps, shift 3, no guidance, euler"


def open_file(page: Page, file: Path) -> None:
    """Open a workflow as the menu does, and wait for all of it to be on the canvas."""
    page.wait_for_function(CANVAS_IS_READY)
    page.set_input_files("#comfy-file-input", file)
    page.wait_for_function("id => window.app.rootGraph.id === id", arg=read(file)["id"])
    settle(page)


def reopen(page: Page, workflow: Json) -> None:
    """Open a workflow that is not in a file, in place of what the canvas shows."""
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    settle(page)


def undo(page: Page) -> None:
    """Change the graph and take the change back, which builds every node anew."""
    page.evaluate(
        """async () => {
            const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker
            window.app.rootGraph.nodes[0].title = "changed"
            tracker.captureCanvasState()
            await tracker.undo()
        }"""
    )
    settle(page)


def settle(page: Page) -> None:
    """Wait until Nodes 2.0 has drawn and measured every node, and with that perhaps changed its height."""
    if page.evaluate("window.LiteGraph.vueNodesMode"):
        page.wait_for_function(
            "document.querySelectorAll('[data-node-id]').length === window.app.rootGraph.nodes.length"
        )
    page.evaluate(UNTIL_STILL)


def look_at(page: Page, node_type: str) -> None:
    """Bring a node close: from far away the classic canvas leaves texts out."""
    page.evaluate(
        """type => {
            window.app.canvas.ds.scale = 1
            window.app.canvas.centerOnNode(window.app.rootGraph.nodes.find((node) => node.type === type))
        }""",
        node_type,
    )


def overlapping(page: Page) -> list[list[str]]:
    """Return the types of every two nodes of which one covers a part of the other."""
    return page.evaluate(
        """() => {
            const boxes = window.app.rootGraph.nodes.map((node) => [node.type, ...node.boundingRect])
            const apart = ([, x, y, w, h], [, X, Y, W, H]) => x + w <= X || X + W <= x || y + h <= Y || Y + H <= y
            return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => !apart(a, b)).map((b) => [a[0], b[0]]))
        }"""
    )


def test_every_workflow_has_an_api_twin_and_a_layout() -> None:
    assert sorted(file.stem for file in API.glob("*.json")) == NAMES
    assert sorted(LAYOUTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_where_its_nodes_and_models_come_from(name: str) -> None:
    for node in read(WORKFLOWS / f"{name}.json")["nodes"]:
        if not node["type"].startswith("AceStep"):
            continue
        said = node["properties"]
        assert (said["cnr_id"], said["ver"]) == (PROJECT["name"], PROJECT["version"])
        if node["type"].startswith("AceStepLoad") and node["type"] != "AceStepLoadLora":
            (model,) = said["models"]
            # What ComfyUI's missing-model dialog asks of a link it offers.
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['directory']}/{model['name']}")


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_whole_and_exports_its_api_twin(workbench: tuple[Page, list[str]], name: str) -> None:
    page, errors = workbench
    open_file(page, WORKFLOWS / f"{name}.json")
    loaded = page.evaluate("window.app.extensions.map(({name}) => name)")
    assert {name for name in loaded if name.startswith("acestep.")} == OUR_EXTENSIONS
    unknown = page.evaluate(
        "window.app.rootGraph.nodes.map(({type}) => type)"
        ".filter((type) => !(type in window.LiteGraph.registered_node_types))"
    )
    assert unknown == []
    assert page.get_by_role("dialog").count() == 0  # no missing models, no failed load
    assert overlapping(page) == []
    _, prompt = export(page)
    assert json.dumps(prompt) == json.dumps(read(API / f"{name}.json"))  # their order, too
    assert errors == []


@pytest.mark.parametrize("name", NAMES)
def test_saving_loading_and_saving_again_changes_nothing(workbench: tuple[Page, list[str]], name: str) -> None:
    page, _ = workbench
    open_file(page, WORKFLOWS / f"{name}.json")
    first, _ = export(page)
    reopen(page, first)
    second, _ = export(page)
    assert second == first
    if not page.evaluate("window.LiteGraph.vueNodesMode"):  # where nodes are taller
        assert first == read(WORKFLOWS / f"{name}.json")


def test_the_text_a_node_returns_appears_on_it_and_nowhere_else(page: Page) -> None:
    open_file(page, WORKFLOWS / "01_text_to_song.json")
    # A new seed, or ComfyUI would take the result of the other renderer and have nothing to say.
    page.evaluate(
        """seed => {
            const {nodes} = window.app.rootGraph
            const set = (type, name, value) =>
                nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === name).value = value
            set("AceStepSong", "duration", 10)
            set("AceStepSample", "seed", seed)
            set("AceStepSample", "control_after_generate", "fixed")
        }""",
        random.randrange(2**53),
    )
    before, prompt_before = export(page)
    text = page.get_by_text(TURBO_SUMMARY)
    assert text.count() == 0

    page.get_by_test_id("queue-button").click()
    look_at(page, "AceStepSample")
    expect(text).to_be_visible(timeout=RUN_LIMIT_MS)
    after, prompt_after = export(page)
    assert prompt_after == prompt_before
    assert TURBO_SUMMARY not in json.dumps(after)
    assert [node.get("widgets_values") for node in after["nodes"]] == [
        node.get("widgets_values") for node in before["nodes"]
    ]

    undo(page)
    look_at(page, "AceStepSample")
    expect(text).to_be_visible()

    open_file(page, WORKFLOWS / "01_text_to_song_base.json")
    assert text.count() == 0
    page.get_by_text("01_text_to_song", exact=True).click()  # its tab
    expect(text).to_be_visible()


def test_the_sentence_of_a_failed_node_is_on_it_until_the_next_run(page: Page) -> None:
    open_file(page, WORKFLOWS / "01_text_to_song.json")
    change = """([type, name, value]) => {
        const node = window.app.rootGraph.nodes.find((each) => each.type === type)
        node.widgets.find((widget) => widget.name === name).value = value
    }"""
    page.evaluate(change, ["AceStepSong", "duration", 10])
    page.evaluate(change, ["AceStepSample", "seeds", "1, 2"])
    sentence = page.get_by_text("2 seeds are listed for 1 takes; list one for each or none", exact=True)
    page.get_by_test_id("queue-button").click()
    look_at(page, "AceStepSample")
    expect(sentence).to_be_visible(timeout=RUN_LIMIT_MS)

    page.evaluate(change, ["AceStepSample", "seeds", ""])
    page.evaluate(change, ["AceStepSample", "seed", random.randrange(2**53)])
    page.evaluate("window.app.queuePrompt(0)")
    expect(page.get_by_text(TURBO_SUMMARY)).to_be_visible(timeout=RUN_LIMIT_MS)
    expect(sentence).to_have_count(0)
