"""Takes the README's pictures: workflow 01 on ComfyUI's canvas after a run, in both of its renderers.

Runs with tiny random models, so that it needs neither weights nor a GPU. Needs a Chromium.

    uv run scripts/screenshots.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import Page

import comfyui
import tiny_models
from workflows import ROOT, SETTINGS, WORKFLOWS, canvas, open_workflow, read

PICTURED = "01_text_to_song"
# The file of each picture, and whether Nodes 2.0 draws it (in Vue) or the classic canvas.
PICTURES = {"workflow_01.png": False, "workflow_01_nodes2.png": True}

RUN_LIMIT_MS = 300_000
SETTLE_MS = 8_000  # also for the message that the run is over, which goes by itself
WINDOW = {"width": 1600, "height": 1050}
# What of the window the frontend's own bars leave to the graph, in pixels.
FRAME = {"left": 76, "top": 104, "right": 1586, "bottom": 986}

# Else the frontend draws a new seed after the run, and the picture would show one that was not used.
KEEP_SEED = """() => window.app.rootGraph.findNodesByType("AceStepSample").forEach(({widgets}) =>
    widgets.find(({name}) => name === "control_after_generate").value = "fixed")"""
SONG_IS_PLAYABLE = """() => window.app.rootGraph.findNodesByType("AceStepSave")
    .every(({widgets}) => widgets.find(({name}) => name === "audioUI").element.duration > 0)"""
# The frontend's own command leaves wide margins.
FIT = """({left, top, right, bottom}) => {
    const boxes = window.app.rootGraph.groups.map(({pos, size}) => [...pos, pos[0] + size[0], pos[1] + size[1]])
    const [x1, y1] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])))
    const [x2, y2] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])))
    const view = window.app.canvas.ds
    view.scale = Math.min((right - left) / (x2 - x1), (bottom - top) / (y2 - y1))
    view.offset = [(left + right) / 2 / view.scale - (x1 + x2) / 2, top / view.scale - y1]
    window.app.canvas.setDirty(true, true)
}"""


def screenshot(page: Page, name: str, file: Path) -> None:
    """Run a workflow and save a picture of all of it, with its player and what the nodes have to say."""
    open_workflow(page, read(WORKFLOWS / f"{name}.json"), name)
    page.evaluate(KEEP_SEED)
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function(SONG_IS_PLAYABLE, timeout=RUN_LIMIT_MS)
    page.evaluate(FIT, FRAME)
    page.wait_for_timeout(SETTLE_MS)
    file.parent.mkdir(exist_ok=True)
    page.screenshot(path=file)


def main() -> None:
    for name, nodes2 in PICTURES.items():
        # A new folder and a new server each: the songs are numbered from 1, and no result comes from a cache.
        with tempfile.TemporaryDirectory() as folder:
            comfyui.install_pack(Path(folder))
            tiny_models.write_comfyui_folders(Path(folder) / "models")
            settings = {**SETTINGS, "Comfy.VueNodes.Enabled": nodes2}
            with comfyui.start(Path(folder)) as server, canvas(server, settings, WINDOW) as page:
                screenshot(page, PICTURED, ROOT / "docs" / name)


if __name__ == "__main__":
    main()
