"""The LoRA loader: puts any trainer's adapter on a MODEL, with strengths by part and a report of what matched."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import io

from ..acestep_core.bundle import clean_prefix
from ..acestep_core.lora.files import read_adapter
from ..acestep_core.lora.fit import Strengths, describe, fit
from ..acestep_core.lora.portable import keep_portable
from ..acestep_core.lora.source import files_of, list_adapter_folders
from .host import folders, progress
from .host.folders import path_of
from .host.lora_patch import patched, shapes_of
from .host.widgets import FileInput
from .load import LOADERS

LORA_FOLDERS = ("loras",)
PORTABLE_FOLDER = "loras"  # under ComfyUI's output folder
MAX_STRENGTH = 100.0  # as in core's LoRA loaders


def _strength(name: str, tooltip: str, advanced: bool = True):
    return io.Float.Input(
        name, default=1.0, min=-MAX_STRENGTH, max=MAX_STRENGTH, step=0.01, tooltip=tooltip, advanced=advanced
    )


class AceStepLoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadLora",
            display_name="Load ACE-Step LoRA",
            category=LOADERS,
            description="Puts a LoRA, DoRA, LoKr or LoHa of any trainer on the model, and reports what matched.",
            search_aliases=["lora", "ace step lora", "lora loader", "adapter", "dora", "lokr", "loha", "peft"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="From Load ACE-Step Model, or another of these nodes to stack adapters."
                ),
                FileInput(
                    "adapter",
                    options=_options(),
                    tooltip="A file in models/loras, or a trainer's folder there. Folders end with a slash.",
                ),
                _strength(
                    "strength",
                    "How strongly the adapter acts. 1 is as trained, 0 is off, below 0 is the opposite.",
                    advanced=False,
                ),
                _strength(
                    "strength_self_attention",
                    "Multiplied by strength, for self-attention: how the music hangs together over time.",
                ),
                _strength(
                    "strength_cross_attention",
                    "Multiplied by strength, for cross-attention: how caption, lyrics and voice are followed.",
                ),
                _strength("strength_mlp", "Multiplied by strength, for the MLP layers: the sound itself."),
                _strength(
                    "strength_condition_encoder",
                    "Multiplied by strength, for the condition encoder: how caption, lyrics and reference are "
                    "read. Few adapters change it.",
                ),
                io.String.Input(
                    "portable_copy",
                    default="",
                    optional=True,
                    tooltip="A file name. The adapter is saved under it in ComfyUI's output/loras folder, in the form "
                    "that most programs read; beside a file of that name with another adapter, as name_2. Empty saves "
                    "nothing.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="A copy of the model with the adapter on it; the model that came in is unchanged."
                ),
                io.String.Output(display_name="report", tooltip="What was loaded, what matched, and warnings."),
                io.String.Output(display_name="portable_file", tooltip="The file name of the portable copy, or empty."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter, **_inputs):
        # A trainer may overwrite the file.
        return [file.stat().st_mtime_ns for file in files_of(path_of(LORA_FOLDERS, adapter))]

    @classmethod
    def execute(
        cls,
        model,
        adapter,
        strength,
        strength_self_attention,
        strength_cross_attention,
        strength_mlp,
        strength_condition_encoder,
        portable_copy="",
    ):
        strengths = Strengths(
            strength, strength_self_attention, strength_cross_attention, strength_mlp, strength_condition_encoder
        )
        shapes = shapes_of(model)
        read = read_adapter(folders.path_of(LORA_FOLDERS, adapter))
        fitted = fit(read, shapes)
        copy, told = _portable(read, portable_copy) if portable_copy.strip() else ("", "")
        report = "\n".join(filter(None, (describe(read, fitted, strengths), told)))
        progress.log.info(report)
        return io.NodeOutput(patched(model, fitted, strengths), report, copy, ui={"text": (report,)})


def _portable(adapter, name: str) -> tuple[str, str]:
    """Return the file under ComfyUI's output folder that holds an adapter in portable form, and what to report of it.

    An existing file stays: it is this adapter already, or another name is taken.
    """
    wanted = f"{PORTABLE_FOLDER}/{clean_prefix(name.removesuffix('.safetensors'), 'portable_copy')}.safetensors"
    outputs = Path(folder_paths.get_output_directory())
    if not folder_paths.is_within_directory(str(outputs), str(outputs / wanted)):
        raise ValueError(f'portable_copy "{name}" leads out of ComfyUI\'s output folder, through a link')
    path, was_there = keep_portable(adapter, outputs / wanted)
    file = path.relative_to(outputs).as_posix()
    notes = [" (kept: it holds this adapter already)"] if was_there else []
    notes += [f" ({wanted} holds something else and stays)"] if file != wanted else []
    return file, f"portable copy: {file}{''.join(notes)}"


def _options() -> list[str]:
    """Return the files in models/loras and the PEFT folders as `name/`, whose files are not listed again."""
    roots = folder_paths.get_folder_paths(LORA_FOLDERS[0])
    folders = sorted({name for root in roots for name in list_adapter_folders(Path(root))})
    files = [name.replace("\\", "/") for name in folder_paths.get_filename_list(LORA_FOLDERS[0])]
    return folders + [name for name in files if not name.startswith(tuple(folders))]
