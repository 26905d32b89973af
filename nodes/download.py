"""AceStepDownload: fetch published checkpoints into ComfyUI's own model folders, when the user runs it."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io, ui

from ..acestep_core.checkpoints import catalogue, download
from .host import progress

LIST = "list"
# ComfyUI still registers its old folder names, `unet` even before `diffusion_models`; nobody looks there.
LEGACY_FOLDERS = ("unet", "clip")


class AceStepDownload(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AceStepDownload",
            display_name="ACE-Step Download",
            category="audio/ACE-Step/loaders",
            description="Downloads published ACE-Step 1.5 models into ComfyUI's model folders.",
            search_aliases=["ace step models", "get models", "download model", "download models", "huggingface"],
            inputs=[
                io.Combo.Input(
                    "what",
                    options=[*catalogue.SETS, LIST, *(c.name for c in catalogue.CHECKPOINTS)],
                    default="turbo set",
                    tooltip="What to download when you press Run. 'turbo set' (6.3 GB) is all you need for a first "
                    "song: the turbo model, its text encoder and the VAE. 'list' downloads nothing and shows every "
                    "published model with its size. Complete files are not downloaded again.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Each file with its size and the folder it is in.")
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: object) -> float:
        return float("nan")  # never equal to itself: files may have gone since the last run

    @classmethod
    def execute(cls, what: str) -> io.NodeOutput:
        if what == LIST:
            lines = [_list_line(checkpoint) for checkpoint in catalogue.CHECKPOINTS]
        else:
            lines = [line for checkpoint in catalogue.choose(what) for line in _download(checkpoint)]
        report = "\n".join(lines)
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def _download(checkpoint: catalogue.Checkpoint) -> list[str]:
    """Make sure the checkpoint is in one of ComfyUI's folders; return a report line per file."""
    present = [path for path in _folders(checkpoint) if download.is_present(checkpoint, path)]
    folder_dir = present[0] if present else _folders(checkpoint)[0]
    fetched = download.download(
        checkpoint,
        folder_dir,
        on_progress=progress.of_parts(),
        check_cancelled=progress.raise_if_interrupted,
    )
    return [
        f"{each.path.name}  {catalogue.human_size(each.path.stat().st_size)}  {each.state}: {each.path.parent}"
        for each in fetched
    ]


def _list_line(checkpoint: catalogue.Checkpoint) -> str:
    folders = _folders(checkpoint)
    staged_bytes = sum(download.staged_bytes(checkpoint, path) for path in folders)
    if any(download.is_present(checkpoint, path) for path in folders):
        state = "present"
    elif staged_bytes:
        state = f"begun, {catalogue.human_size(staged_bytes)} so far"
    else:
        state = "not downloaded"
    return f"{checkpoint.name}  {checkpoint.size_text}  {checkpoint.folder}  {state}  ({checkpoint.note})"


def _folders(checkpoint: catalogue.Checkpoint) -> list[Path]:
    """Return every folder ComfyUI reads the category from, the one to download into first."""
    paths = [Path(path) for path in folder_paths.get_folder_paths(checkpoint.folder)]
    return sorted(paths, key=lambda path: path.name in LEGACY_FOLDERS)  # stable: the user's default stays first
