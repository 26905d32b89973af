"""Which part of a song to generate again: a mask in seconds or bars, and its picture."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io, ui

from ..acestep_core.constants import FRAME_RATE, MAX_POSITION_S, SAMPLE_RATE
from ..acestep_core.pipeline.region import region
from ..acestep_core.song.bars import UNITS, in_seconds
from .host.latents import latent_samples, recording_of
from .host.sockets import CATEGORY, SongSocket
from .host.widgets import number
from .pictures import lanes as picture

MAX_FEATHER_S = 60.0


class AceStepRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepRegion",
            display_name="ACE-Step Region",
            category=f"{CATEGORY}/tasks",
            description="Marks a part of a song, in seconds or bars, as a mask, and shows it over the waveform.",
            search_aliases=["mask", "time range", "repaint region", "inpaint"],
            inputs=[
                io.Latent.Input("latent", tooltip="The song to mark a part of. It sets the length of the mask."),
                number(
                    "start",
                    0.0,
                    MAX_POSITION_S,
                    "Where the region begins, in seconds or bars from the start of the song; bar 0 is the first.",
                    step=0.01,
                ),
                number(
                    "end",
                    0.0,
                    MAX_POSITION_S,
                    "Where the region ends, in seconds or bars from the start of the song. 0 is the end of the latent.",
                    step=0.01,
                ),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="seconds",
                    tooltip="Unit of start and end. Bars need a song; a bar has as many beats as its time signature "
                    "says, four on auto.",
                ),
                number(
                    "feather",
                    0.0,
                    MAX_FEATHER_S,
                    "Length in seconds of the fades on both sides, outside the region. 0 is a hard edge.",
                    step=0.01,
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Keep the region and generate the rest again.",
                ),
                SongSocket.Input("song", optional=True, tooltip="Gives tempo and time signature where unit is bars."),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound of the latent, used only to draw the picture. Not needed if the latent was encoded "
                    "from a recording.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="25 values a second: 1 generates, 0 keeps. For the tasks and for core's mask nodes.",
                )
            ],
        )

    @classmethod
    def execute(cls, latent, start, end, unit, feather, invert, song=None, audio=None):
        n_frames = latent_samples(latent).shape[1]
        mask = region(n_frames, in_seconds(start, unit, song), in_seconds(end, unit, song), feather, invert)
        duration_s = n_frames / FRAME_RATE
        lane = picture.wave_lane(*_waveform(latent, audio), mask[0], duration_s)
        return io.NodeOutput(mask[:, None], ui=ui.PreviewImage(picture.draw([lane], duration_s)))


def _waveform(latent: dict, audio: dict | None):
    """Return a waveform [channels, S] of the first take, and its rate, for the picture.

    That is the audio, else the recording the latent was encoded from, else the magnitude of each frame.
    """
    if audio is not None and audio["waveform"].numel():
        return audio["waveform"][0], audio["sample_rate"]
    recording = recording_of(latent)
    if recording is not None:
        return recording[0], SAMPLE_RATE
    size = latent_samples(latent)[0].float().square().mean(-1).sqrt()
    return torch.stack((size, -size)), FRAME_RATE
