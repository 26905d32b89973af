"""Audio codes as text and as files."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..acestep_core.bundle import clean_prefix
from ..acestep_core.codes.files import SUFFIX, load, save_next
from ..acestep_core.codes.text import from_text, to_text
from .host.sockets import CATEGORY, CodesSocket
from .host.widgets import FileInput

CODES = f"{CATEGORY}/codes"
SAVED_FOLDER = "codes"  # under ComfyUI's output folder


class AceStepCodesText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepCodesText",
            display_name="ACE-Step Codes to Text",
            category=CODES,
            description="Writes audio codes as text, to copy or to look at.",
            inputs=[CodesSocket.Input("codes", tooltip="Any audio codes.")],
            outputs=[io.String.Output(display_name="text", tooltip="<|audio_code_N|>…, an empty line between plans.")],
        )

    @classmethod
    def execute(cls, codes):
        return io.NodeOutput(to_text(codes))


class AceStepCodesFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepCodesFromText",
            display_name="ACE-Step Text to Codes",
            category=CODES,
            description="Reads audio codes from text.",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    placeholder="<|audio_code_35847|><|audio_code_1234|>…",
                    tooltip="Codes 0 to 63999, all written <|audio_code_N|> or all as numbers; an empty line begins "
                    "the next plan. Or JSON lists of numbers, one a plan.",
                )
            ],
            outputs=[CodesSocket.Output(display_name="codes", tooltip="For ACE-Step Encode Song and the code nodes.")],
        )

    @classmethod
    def execute(cls, text):
        return io.NodeOutput(from_text(text))


class AceStepSaveCodes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSaveCodes",
            display_name="ACE-Step Save Codes",
            category=CODES,
            description="Saves audio codes in a file in ComfyUI's output folder.",
            inputs=[
                CodesSocket.Input("codes", tooltip="Any audio codes."),
                io.String.Input(
                    "filename_prefix",
                    default=f"{SAVED_FOLDER}/acestep",
                    tooltip="Folder and name under ComfyUI's output folder; a number is added.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file, under the output folder.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, codes, filename_prefix):
        folder, stem, _, subfolder, _ = folder_paths.get_save_image_path(
            clean_prefix(filename_prefix), folder_paths.get_output_directory()
        )
        name = save_next(codes, Path(folder), stem)
        file = os.path.join(subfolder, name).replace("\\", "/")
        return io.NodeOutput(file, ui={"text": (file,)})


class AceStepLoadCodes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadCodes",
            display_name="ACE-Step Load Codes",
            category=CODES,
            description="Loads saved audio codes.",
            inputs=[
                FileInput(
                    "file",
                    options=_saved(),
                    tooltip="A codes file in ComfyUI's input folder, or one saved in its output folder.",
                )
            ],
            outputs=[CodesSocket.Output(display_name="codes", tooltip="The codes as they were saved.")],
        )

    @classmethod
    def validate_inputs(cls, file):
        # A file saved after the page was loaded is not in its list.
        return bool(_path(file))

    @classmethod
    def fingerprint_inputs(cls, file):
        return _path(file).stat().st_mtime_ns

    @classmethod
    def execute(cls, file):
        return io.NodeOutput(load(_path(file)))


def _roots() -> tuple[Path, Path]:
    return Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())


def _saved() -> list[str]:
    """Return the codes files to choose from: in the input folder, and under `codes/` in the output folder.

    The rest of the output folder may hold years of work; listing it would slow down every page load.
    """
    inputs, outputs = _roots()
    paths = [*inputs.glob(f"*{SUFFIX}"), *(outputs / SAVED_FOLDER).rglob(f"*{SUFFIX}")]
    return sorted(path.relative_to(inputs if path.parent == inputs else outputs).as_posix() for path in paths)


def _path(name: str) -> Path:
    """Return the file a combo value names, never one outside ComfyUI's input and output folders.

    Raises FileNotFoundError for one that is not there.
    """
    for root in _roots():
        path = root / name
        if path.is_file() and folder_paths.is_within_directory(str(root), str(path)):
            return path
    raise FileNotFoundError(f'"{name}" is gone; choose another codes file')
