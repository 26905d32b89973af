"""Draws the workflows people open, `workflows/*.json`, from the API prompts in `workflows/api/` and a layout each.

ComfyUI's own frontend builds every graph, measures it and writes both files, so they are what a user would save
and export. A new workflow is an API prompt, an entry in LAYOUTS and a note in `notes/`. Needs a Chromium.

    uv run scripts/workflows.py
    uv run scripts/workflows.py 01_text_to_song
"""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib
from playwright.sync_api import Page, sync_playwright

import comfyui
import recordings
import tiny_models
from client import Client
from pack import load_pack

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
API = WORKFLOWS / "api"
NOTES = ROOT / "scripts" / "notes"
BASE = ROOT / ".cache" / "workflows"

Json = dict[str, Any]

catalogue = load_pack("acestep_core.checkpoints.catalogue")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Registry ids, from which ComfyUI's manager knows what to install when a node is missing.
OUR_PACK = {"cnr_id": PROJECT["name"], "ver": PROJECT["version"]}
CORE = {"cnr_id": "comfy-core", "ver": comfyui.COMFYUI_VERSION}
MODEL_URL = "https://huggingface.co/{repo_id}/resolve/main/{file}"

# Canvas pixels. A node's position is the corner below its title bar.
TITLE_BAR = 30
GROUP_TITLE = 46
GROUP_MARGIN = 20
NODE_GAP = 24
STAGE_GAP = 70
COLUMN_GAP = 50
# Nodes 2.0 draws the same node up to this much taller than the classic canvas, which measures it.
NODES_2_ROOM = 40
# Nodes that show text after a run: a line or two, or a whole song.
RESULT_ROOM = {
    "AceStepLoadModel": 50,
    "AceStepSample": 50,
    "AceStepPlan": 260,
    "AceStepIdea": 260,
    "AceStepUnderstand": 260,
    "AceStepEncodeAudio": 50,
    "AceStepReference": 50,
    "AceStepRegion": 180,
    "AceStepEditCodes": 50,
    "AceStepDecode": 50,
    "AceStepLoadLora": 130,
    "AceStepScoreLyrics": 420,
    "AceStepScorePlan": 90,
    "AceStepPickBest": 90,
    "AceStepWeakLines": 90,
    "AceStepSave": 110,
    **dict.fromkeys(
        (
            "AceStepCover",
            "AceStepRepaint",
            "AceStepExtend",
            "AceStepStitch",
            "AceStepLego",
            "AceStepExtract",
            "AceStepComplete",
        ),
        50,
    ),
}
# Nodes whose text has to be readable without scrolling; all others are as small as they can be.
HEIGHTS = {
    "AceStepSong": 810,
    "AceStepIdea": 340,
    "AceStepCodesFromText": 340,
    "PreviewAny": 260,
    "LoadAudio": 140,
}

# Its own default workflow has been opened, too: it would come on top of ours.
CANVAS_IS_READY = (
    "!!(window.app?.extensionManager?.workflow?.activeWorkflow && window.LiteGraph.registered_node_types.AceStepSample)"
)
READY_LIMIT_MS = 60_000
WINDOW = {"width": 1800, "height": 1010}
# Nothing in front of the graph: no first-start tutorial, overview map, frame rate or badges.
SETTINGS = {
    "Comfy.VueNodes.Enabled": False,
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeLifeCycleBadgeMode": "None",
}


@dataclass(frozen=True)
class Note:
    """Advice on the canvas, in Markdown."""

    title: str
    text: str
    height: int


@dataclass(frozen=True)
class Column:
    """Cells from top to bottom, all of one width. A cell is a node's type or a note."""

    width: int
    cells: tuple[str | Note, ...]


@dataclass(frozen=True)
class Stage:
    """A titled group of columns. Stages follow each other from left to right, as the song is made."""

    title: str
    columns: tuple[Column, ...]

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns) + COLUMN_GAP * (len(self.columns) - 1)


LOADERS = ("AceStepLoadTextEncoder", "AceStepLoadVAE", "AceStepLoadModel")
# What ACE-Step Download fetches for a workflow.
TURBO_SET = "*turbo set* (6.3 GB)"
BASE_SET = "*base set* (6.3 GB)"
PLANNER = "*qwen_1.7b_ace15.safetensors*"


def _note(name: str, height: int, models: str = TURBO_SET) -> Note:
    """Return the note `notes/{name}.md`: a heading and the text. {download} in it tells how to fetch the models."""
    title, text = _prose(name).split("\n\n", 1)
    download = _prose("download").replace("{models}", models)
    return Note(title.removeprefix("# "), text.replace("{download}", download), height)


def _prose(name: str) -> str:
    return (NOTES / f"{name}.md").read_text(encoding="utf-8").removesuffix("\n")


START_TURBO = _note("01_text_to_song", 250)
START_BASE = _note("01_text_to_song_base", 250, BASE_SET)
START_PLAN = _note("02_plan_and_sing", 270, f"*turbo set* and {PLANNER}")
START_IDEA = _note("03_idea_to_song", 210, f"*turbo set* and {PLANNER}")
START_UNDERSTAND = _note("04_understand_audio", 220)
YOUR_FILE = _note("your_song", 110)
START_COVER = _note("05_cover", 250)
START_REPAINT = _note("06_repaint", 280)
START_REGIONS = _note("07_repaint_regions", 250)
START_EXTEND = _note("08_extend", 250)
START_STITCH = _note("09_stitch", 250)
START_ENDLESS = _note("10_endless", 300)
START_LEGO = _note("11_lego", 250, BASE_SET)
START_EXTRACT = _note("12_extract_stems", 250, BASE_SET)
START_COMPLETE = _note("13_vocal_to_backing_track", 250, BASE_SET)
START_REFERENCE = _note("14_reference_timbre", 250)
START_MIX = _note("15_codes_dj_mix", 250)
START_KSAMPLER = _note("16_native_ksampler", 250)
START_BEST = _note("17_best_of_n", 290, f"{TURBO_SET} and {PLANNER}")
START_REPAIR = _note("18_repair_weak_lines", 270)
START_KARAOKE = _note("19_karaoke_lrc", 250)
START_AUTOGEN = _note("20_autogen", 250)
START_MORPH = _note("23_morph", 250)
START_LORA = _note("21_lora_one", 250)
START_STACK = _note("22_lora_stack", 250)
LOAD_TURBO = Stage("Load", (Column(320, (*LOADERS, START_TURBO)),))
LOAD_BASE = Stage("Load", (Column(320, (*LOADERS, START_BASE)),))
LOAD_PLAN = Stage("Load", (Column(320, (*LOADERS, "AceStepLoadPlanner", START_PLAN)),))
LOAD_IDEA = Stage("Load", (Column(320, (*LOADERS, "AceStepLoadPlanner", START_IDEA)),))
SONG = Stage("Song", (Column(420, ("AceStepSong",)),))
PLAN = Stage("Plan", (Column(320, ("AceStepPlan",)),))
SAMPLE = Column(280, ("AceStepSample",))
GENERATE = Stage("Generate", (Column(250, ("AceStepEncode",)), SAMPLE))
LISTEN = Stage("Listen", (Column(320, ("AceStepDecode", "AceStepSave", YOUR_FILE)),))
RECORDING = ("LoadAudio", "AceStepEncodeAudio")


def _from_music(start: Note, task: str, *regions: str, recordings: int = 1) -> tuple[Stage, ...]:
    """Return the stages of a workflow that does one task with the user's own music."""
    return (
        Stage("Load", (Column(320, (*LOADERS, start)),)),
        Stage("Your music", (Column(320, RECORDING * recordings), Column(320, (*regions, task)))),
        SONG,
        GENERATE,
        LISTEN,
    )


LAYOUTS: Mapping[str, tuple[Stage, ...]] = {
    "01_text_to_song": (
        LOAD_TURBO,
        SONG,
        # One stage, so that the first workflow people open fills their screen.
        Stage(
            "Generate and listen",
            (
                Column(280, ("AceStepEncode", "AceStepDecode", YOUR_FILE)),
                Column(320, ("AceStepSample", "AceStepSave")),
            ),
        ),
    ),
    "01_text_to_song_base": (
        LOAD_BASE,
        SONG,
        Stage("Generate", (Column(250, ("AceStepEncode", "AceStepSamplerOptions")), SAMPLE)),
        LISTEN,
    ),
    "02_plan_and_sing": (LOAD_PLAN, SONG, PLAN, GENERATE, LISTEN),
    "03_idea_to_song": (LOAD_IDEA, Stage("Idea", (Column(420, ("AceStepIdea",)),)), PLAN, GENERATE, LISTEN),
    "04_understand_audio": (
        Stage("Load", (Column(320, ("AceStepLoadPlanner", "AceStepCodesFromText", START_UNDERSTAND)),)),
        Stage("Understand", (Column(320, ("AceStepUnderstand", "AceStepSongInfo")),)),
        Stage("Read", (Column(420, ("PreviewAny", "PreviewAny")),)),
    ),
    "05_cover": _from_music(START_COVER, "AceStepCover"),
    "06_repaint": _from_music(START_REPAINT, "AceStepRepaint", "AceStepRegion"),
    "07_repaint_regions": _from_music(
        START_REGIONS, "AceStepRepaint", "AceStepRegion", "AceStepRegion", "MaskComposite"
    ),
    "08_extend": _from_music(START_EXTEND, "AceStepExtend"),
    "09_stitch": _from_music(START_STITCH, "AceStepStitch", recordings=2),
    "10_endless": (
        Stage("Load", (Column(320, (*LOADERS, START_ENDLESS)),)),
        Stage("Your music", (Column(320, RECORDING),)),
        SONG,
        Stage("Extend", (Column(280, ("AceStepExtend", "AceStepEncode")), SAMPLE, Column(280, ("AceStepDecode",)))),
        Stage(
            "Again",
            (
                Column(280, ("AceStepEncodeAudio", "AceStepExtend", "AceStepEncode")),
                SAMPLE,
                Column(320, ("AceStepDecode", "AceStepSave", YOUR_FILE)),
            ),
        ),
    ),
    "11_lego": _from_music(START_LEGO, "AceStepLego"),
    "12_extract_stems": _from_music(START_EXTRACT, "AceStepExtract"),
    "13_vocal_to_backing_track": _from_music(START_COMPLETE, "AceStepComplete"),
    "14_reference_timbre": (
        Stage("Load", (Column(320, (*LOADERS, START_REFERENCE)),)),
        Stage("Voice", (Column(320, ("LoadAudio", "AceStepReference")),)),
        SONG,
        GENERATE,
        LISTEN,
    ),
    "15_codes_dj_mix": (
        Stage("Load", (Column(320, (*LOADERS, START_MIX)),)),
        Stage("Your music", (Column(320, RECORDING * 2),)),
        Stage("Mix", (Column(320, ("AceStepTokenize", "AceStepTokenize", "AceStepEditCodes")),)),
        SONG,
        GENERATE,
        LISTEN,
    ),
    "16_native_ksampler": (
        Stage("Load", (Column(320, (*LOADERS, START_KSAMPLER)),)),
        Stage("Your music", (Column(320, (*RECORDING, "AceStepCover")),)),
        SONG,
        Stage("Generate", (Column(280, ("AceStepEncode", "ConditioningZeroOut", "KSampler")),)),
        Stage("Listen", (Column(320, ("VAEDecodeAudio", "AceStepSave", YOUR_FILE)),)),
    ),
    "17_best_of_n": (
        Stage("Load", (Column(320, (*LOADERS, "AceStepLoadPlanner", START_BEST)),)),
        SONG,
        PLAN,
        GENERATE,
        Stage("Score", (Column(420, ("AceStepScorePlan", "AceStepScoreLyrics", "AceStepPickBest")),)),
        LISTEN,
    ),
    "18_repair_weak_lines": (
        Stage("Load", (Column(320, (*LOADERS, START_REPAIR)),)),
        SONG,
        Stage("Sing", (Column(280, ("AceStepEncode", "AceStepSample")),)),
        Stage("Hear", (Column(420, ("AceStepScoreLyrics", "AceStepWeakLines")),)),
        Stage("Sing again", (Column(280, ("AceStepRepaint", "AceStepEncode", "AceStepSample")),)),
        Stage("Choose", (Column(420, ("AceStepScoreLyrics", "AceStepPickBest")),)),
        LISTEN,
    ),
    "19_karaoke_lrc": (
        Stage("Load", (Column(320, (*LOADERS, START_KARAOKE)),)),
        Stage("Your music", (Column(320, (*RECORDING, "AceStepEncode")),)),
        SONG,
        Stage("Hear", (Column(420, ("AceStepScoreLyrics", "PreviewAny")),)),
        Stage("Keep", (Column(320, ("AceStepSave", YOUR_FILE)),)),
    ),
    "20_autogen": (
        Stage("Load", (Column(320, (*LOADERS, START_AUTOGEN)),)),
        SONG,
        GENERATE,
        Stage("Score", (Column(420, ("AceStepScoreLyrics",)),)),
        LISTEN,
    ),
    "23_morph": (
        Stage("Load", (Column(320, (*LOADERS, START_MORPH)),)),
        Stage("Your music", (Column(320, RECORDING),)),
        Stage("What it is", (Column(420, ("AceStepSong", "AceStepEncode")),)),
        Stage("What it becomes", (Column(420, ("AceStepSong", "AceStepEncode")),)),
        Stage("Generate", (Column(280, ("AceStepMorph", "AceStepSample")),)),
        LISTEN,
    ),
    "21_lora_one": (
        Stage("Load", (Column(320, (*LOADERS, START_LORA)),)),
        Stage("Adapter", (Column(320, ("AceStepLoadLora",)),)),
        SONG,
        GENERATE,
        LISTEN,
    ),
    "22_lora_stack": (
        Stage("Load", (Column(320, (*LOADERS, START_STACK)),)),
        Stage("Adapters", (Column(320, ("AceStepLoadLora", "AceStepLoadLora")),)),
        SONG,
        GENERATE,
        LISTEN,
    ),
}

BUILD = """prompt => {
    window.app.loadApiJson(prompt, "workflow")
    return window.app.rootGraph.nodes.map((node) =>
        ({id: String(node.id), type: node.type, height: node.computeSize()[1]}))
}"""
ARRANGE = """({id, nodes, notes, groups}) => {
    const graph = window.app.rootGraph
    graph.id = id
    for (const {id, pos, size, properties} of nodes) {
        const node = graph.getNodeById(id)
        node.pos = pos
        node.setSize(size)
        Object.assign(node.properties, properties)
    }
    for (const {title, text, pos, size} of notes) {
        const note = window.LiteGraph.createNode("MarkdownNote", title)
        graph.add(note)
        note.pos = pos
        note.setSize(size)
        note.widgets[0].value = text
    }
    for (const {title, pos, size} of groups) {
        const group = new window.LiteGraph.LGraphGroup(title)
        group.pos = pos
        group.size = size
        graph.add(group)
    }
}"""


@dataclass(frozen=True)
class Measured:
    """A node of the built graph, with the least height the classic canvas gives it."""

    id: str
    type: str
    height: float


def arrange(name: str, prompt: Json, measured: Sequence[Measured]) -> Json:
    """Return where the nodes, notes and groups of a workflow go, for ARRANGE.

    Raises: ValueError when the layout and the prompt do not have the same nodes.
    """
    left = list(measured)
    nodes, notes, groups = [], [], []
    x = lowest = 0.0
    for stage in LAYOUTS[name]:
        groups.append({"title": stage.title, "pos": [x - GROUP_MARGIN, -TITLE_BAR - GROUP_TITLE]})
        for column in stage.columns:
            y = 0.0
            for cell in column.cells:
                room = NODES_2_ROOM
                if isinstance(cell, Note):
                    height: float = cell.height
                    notes.append({"title": cell.title, "text": cell.text, **_box(x, y, column.width, height)})
                else:
                    node = _take(left, cell, name)
                    height = HEIGHTS.get(cell, node.height)
                    room += RESULT_ROOM.get(cell, 0)
                    box = _box(x, y, column.width, height)
                    nodes.append({"id": node.id, "properties": properties(prompt[node.id]), **box})
                lowest = max(lowest, y + height + room)
                y += height + room + NODE_GAP + TITLE_BAR
            x += column.width + COLUMN_GAP
        x += STAGE_GAP - COLUMN_GAP
    if left:
        raise ValueError(f"the layout of {name} has no place for {left[0].type}")
    for group, stage in zip(groups, LAYOUTS[name], strict=True):
        height = TITLE_BAR + GROUP_TITLE + lowest + GROUP_MARGIN
        group["size"] = [stage.width + 2 * GROUP_MARGIN, height]
    return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "nodes": nodes, "notes": notes, "groups": groups}


def properties(node: Json) -> Json:
    """Return what a node of a prompt says about its origin and, when it loads published files, where they are."""
    if not node["class_type"].startswith("AceStep"):
        return CORE
    if not node["class_type"].startswith("AceStepLoad"):
        return OUR_PACK
    chosen = [checkpoint for checkpoint in catalogue.CHECKPOINTS if checkpoint.name in node["inputs"].values()]
    models = [
        {
            "name": checkpoint.name,
            "url": MODEL_URL.format(repo_id=checkpoint.repo_id, file=checkpoint.files[0]),
            "directory": checkpoint.folder,
        }
        for checkpoint in chosen
    ]
    return {**OUR_PACK, "models": models} if models else OUR_PACK


def draw(page: Page, name: str) -> tuple[Json, Json]:
    """Return a workflow and its API prompt as the frontend writes them."""
    prompt = read(API / f"{name}.json")
    measured = [Measured(**node) for node in page.evaluate(BUILD, prompt)]
    page.evaluate(ARRANGE, arrange(name, prompt, measured))
    # Once more through a file: opening it settles sizes and ids, and what is written must not change again.
    workflow, _ = export(page)
    open_workflow(page, workflow, name)
    return export(page)


def open_workflow(page: Page, workflow: Json, name: str) -> None:
    """Open a workflow on the canvas, in a tab of its own."""
    page.evaluate("([workflow, name]) => window.app.loadGraphData(workflow, true, true, name)", [workflow, name])


def export(page: Page) -> tuple[Json, Json]:
    """Return the canvas's workflow and API prompt as the frontend writes them.

    The workflow says nothing of zoom and scroll, so that it opens fitted to the window.
    """
    # As text: a value handed over as it is would turn what is undefined, and never saved, into null.
    exported = json.loads(page.evaluate("async () => JSON.stringify(await window.app.graphToPrompt())"))
    exported["workflow"]["extra"].pop("ds", None)
    return exported["workflow"], exported["output"]


@contextmanager
def canvas(
    server: comfyui.Server, settings: Mapping[str, bool | str] = SETTINGS, window: Mapping[str, int] = WINDOW
) -> Iterator[Page]:
    """Open the frontend in a headless Chromium for the length of a `with`."""
    client = Client(server.url)
    for setting, value in settings.items():
        client.set_setting(setting, value)
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        raise FileNotFoundError("no chromium on the PATH; install it, the frontend runs in it")
    with sync_playwright() as playwright:
        # Containers have no user namespaces for Chromium's sandbox; all it visits is our own server.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport=window)
        page.goto(server.url)
        page.wait_for_function(CANVAS_IS_READY, timeout=READY_LIMIT_MS)
        yield page
        browser.close()


def read(file: Path) -> Json:
    """Return the JSON of a file."""
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, value: Json) -> None:
    """Write JSON with the frontend's own indentation."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file.relative_to(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to draw, such as {min(LAYOUTS)}; default all")
    names = parser.parse_args().names or list(LAYOUTS)
    if unknown := set(names) - set(LAYOUTS):
        parser.error(f"no layout for {', '.join(sorted(unknown))}")
    comfyui.install_pack(BASE)
    tiny_models.write_comfyui_folders(BASE / "models")
    recordings.write_recordings(BASE / "input")
    with comfyui.start(BASE) as server, canvas(server) as page:
        for name in names:
            workflow, prompt = draw(page, name)
            write(WORKFLOWS / f"{name}.json", workflow)
            write(API / f"{name}.json", prompt)


def _box(x: float, y: float, width: float, height: float) -> Json:
    return {"pos": [x, y], "size": [width, height]}


def _take(left: list[Measured], node_type: str, name: str) -> Measured:
    """Take the first node of a type out of those that are left."""
    for node in left:
        if node.type == node_type:
            left.remove(node)
            return node
    raise ValueError(f"the layout of {name} has more nodes {node_type} than its prompt")


if __name__ == "__main__":
    main()
