"""From latents to sound."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io

from ..acestep_core.audio.level import fade, normalize_peak
from ..acestep_core.constants import SAMPLE_RATE
from ..acestep_core.pipeline.splice import can_splice, keeps_source, splice
from ..acestep_core.pipeline.tasks import TEXT2MUSIC
from .host.latents import decoded_audio, latent_canvases, latent_plans
from .host.sockets import CATEGORY, TaskSocket
from .host.vae import decode
from .host.widgets import number


class AceStepDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepDecode",
            display_name="ACE-Step Decode",
            category=f"{CATEGORY}/generate",
            description="Decodes latents to 48 kHz stereo, in tiles that leave no seam.",
            search_aliases=["vae decode audio", "latent to audio", "normalize", "volume", "fade out"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Load ACE-Step VAE, or core's own loader."),
                io.Latent.Input("latent", tooltip="From the sampler."),
                io.Boolean.Input(
                    "normalize",
                    default=True,
                    tooltip="Bring the loudest sample of each take to the level below. Off leaves levels as decoded. "
                    "Never done where a task keeps audio of its source.",
                ),
                io.Float.Input(
                    "peak_dbfs",
                    default=-1.0,
                    min=-30.0,
                    max=0.0,
                    step=0.1,
                    tooltip="Level of the loudest sample in dBFS; 0 is full scale.",
                ),
                number("fade_in", 0.0, 60.0, "Seconds to fade in at the start."),
                number("fade_out", 0.0, 60.0, "Seconds to fade out at the end."),
                TaskSocket.Input(
                    "task",
                    optional=True,
                    tooltip="The task the latent was made for: what it keeps of its source comes from the recording "
                    "itself, sample for sample.",
                ),
            ],
            outputs=[io.Audio.Output(tooltip="48 kHz stereo, one item a take.")],
        )

    @classmethod
    def execute(cls, vae, latent, normalize, peak_dbfs, fade_in, fade_out, task=None):
        task = task or TEXT2MUSIC
        samples = latent_canvases(latent, task)
        text = ""
        if can_splice(task):
            takes = zip(samples, latent_plans(latent, task.n_items, "recordings"), strict=True)
            audio = torch.stack([splice(take, task, row, lambda part: decode(vae, part)) for take, row in takes])
            text = "the source's own samples are kept, at their level"
        else:
            audio = decode(vae, samples)
            if keeps_source(task):
                text = "the source's recording is not known, so what is kept of it is decoded; levels stay as decoded"
            elif normalize:
                audio = normalize_peak(audio, peak_dbfs)
        result = decoded_audio(fade(audio, fade_in, fade_out), SAMPLE_RATE, latent)
        return io.NodeOutput(result, ui={"text": (text,)})
