"""From a song to CONDITIONING: prompt texts, token ids, and the text encoder's states."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io

from ..acestep_core.constants import LATENT_CHANNELS
from ..acestep_core.pipeline.encode import encode
from ..acestep_core.pipeline.tasks import text2music
from ..acestep_core.types import SongSpec
from .host import memory
from .host.conditioning import conditioning_of
from .host.latents import Origins, latent
from .host.sockets import CATEGORY, CodesSocket, ReferenceSocket, SongSocket, TaskSocket, TextEncoderSocket
from .host.widgets import unit


class AceStepEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepEncode",
            display_name="ACE-Step Encode Song",
            category=f"{CATEGORY}/generate",
            description="Reads a song with the text encoder and gives an empty latent of its length.",
            search_aliases=["TextEncodeAceStepAudio", "conditioning", "empty latent"],
            inputs=[
                TextEncoderSocket.Input("text_encoder", tooltip="From Load ACE-Step Text Encoder."),
                SongSocket.Input("song", tooltip="What to make."),
                CodesSocket.Input(
                    "codes",
                    optional=True,
                    tooltip="Audio codes to follow, one plan for each sequence. They also set the length, where no "
                    "task does.",
                ),
                unit(
                    "codes_strength",
                    1.0,
                    "Part of the steps that follow the codes, 0 to 1. After it the model goes on by "
                    "the text alone. Does nothing without codes or with a task; a cover has a "
                    "strength of its own.",
                    advanced=True,
                ),
                TaskSocket.Input(
                    "task",
                    optional=True,
                    tooltip="What to do with a source: cover, repaint, extend, stitch, lego, extract, complete. It "
                    "also sets the length.",
                ),
                ReferenceSocket.Input(
                    "reference",
                    optional=True,
                    tooltip="Recordings whose voice and sound to take, whatever else is connected.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For the ACE-Step sampler or core's KSampler."),
                io.Latent.Output(tooltip="Zeros of the right length, 25 frames a second."),
            ],
        )

    @classmethod
    def execute(cls, text_encoder, song, codes_strength, codes=None, task=None, reference=None):
        timbre = None if reference is None else reference.latents
        encoding = encode(text_encoder, song, codes, task or text2music(codes_strength), timbre)
        text = "\n".join(_remarks(song, codes_strength, task is not None, bool(encoding.codes.n_plans)))
        empty = torch.zeros(encoding.n_plans, encoding.task.window_frames, LATENT_CHANNELS)
        origins = Origins()
        made = latent(memory.to_intermediate(empty), origins=origins)
        return io.NodeOutput(conditioning_of(encoding, origins), made, ui={"text": (text,)})


def _remarks(song: SongSpec, codes_strength: float, has_task: bool, has_codes: bool) -> list[str]:
    """Return what a user may not have meant: words that are missing, a setting without effect."""
    remarks = {
        "no caption: the model chooses the style": not song.caption.strip(),
        'no lyrics: the model may sing anything; turn on "instrumental" for no voice': not song.lyrics.strip(),
        "codes_strength has no effect beside a task": codes_strength < 1 and has_task,
        "codes_strength has no effect without codes": codes_strength < 1 and not has_task and not has_codes,
    }
    return [remark for remark, is_due in remarks.items() if is_due]
