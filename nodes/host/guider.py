"""Sampling through ComfyUI: the core's loop inside core's guider and sampler, so that wrappers, hooks,
patches, compilation and interruption all apply.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import torch

from ...acestep_core.pipeline.generate import Job, solve
from ...acestep_core.pipeline.guidance import Guidance, Guide
from ...acestep_core.pipeline.morph import MorphGuide
from ...acestep_core.pipeline.sample import Evaluation
from .model import RUN_KEY
from .sockets import Prompt


class AceStepGuider(comfy.samplers.CFGGuider):
    """Core's guider with our guidance methods, and no unconditional pass where they do not need one.

    A morph gives it a second pair of conditions, for the prompt it comes from, and its own guide.
    """

    def __init__(self, model_patcher, guidance: Guidance) -> None:
        super().__init__(model_patcher)
        self.guidance = guidance
        self.guide: Guide | MorphGuide = Guide(guidance)
        self.at = Evaluation(t=1.0, step=0)

    def set_origin(self, positive: list, negative: list) -> None:
        """Take the prompt that a morph comes from, with its text and without."""
        self.inner_set_conds({"positive_from": positive, "negative_from": negative})
        self.guide = MorphGuide(self.guidance)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Return the predicted data of latents x [B, 64, T] under guidance."""
        options = dict(model_options or {})
        applies = self.guidance.applies_at(self.at.t)
        if applies:
            # A guidance function that another node has put on the MODEL goes first.
            options.setdefault("sampler_cfg_function", self._combine)
        scale = self.guidance.scale if applies else 1.0
        which = "_from" if self.at.origin else ""
        positive, negative = self.conds[f"positive{which}"], self.conds[f"negative{which}"]
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, negative, positive, scale, options, seed)

    def _combine(self, args: dict) -> torch.Tensor:
        # Core hands over and takes back x minus data, which is sigma times the velocity.
        sigma = float(args["sigma"][0])
        cond, uncond, x = (args[name].transpose(1, 2) for name in ("cond", "uncond", "input"))
        cond, uncond = cond / sigma, uncond / sigma
        return sigma * self.guide(cond, uncond, x, self.at).transpose(1, 2)


def run(
    model_patcher,
    prompt: Prompt,
    job: Job,
    *,
    seed: int,
    morph_from: Prompt | None = None,
    on_step: Callable[[int], None],
) -> torch.Tensor:
    """Return latents [B, T, 64] of a job, float32 on the CPU.

    seed: what core tells others that it sampled with. morph_from: the prompt that a morph comes from.
    """
    guider = AceStepGuider(model_patcher, job.guidance)
    guider.set_conds(*prompt.for_takes(job.rows))
    if job.morph is not None:
        guider.set_origin(*morph_from.for_takes(job.rows))
    start = torch.zeros_like(job.noise) if job.start is None else job.start
    samples = guider.sample(
        job.noise.transpose(1, 2).contiguous(),
        start.transpose(1, 2).contiguous(),
        comfy.samplers.KSAMPLER(_Sampler(guider, job, on_step)),
        torch.tensor(job.levels),
        disable_pbar=True,
        seed=seed,
    )
    return samples.transpose(1, 2).float().cpu()


class _Sampler:
    """The core's loop as one of ComfyUI's sampler functions."""

    def __init__(self, guider: AceStepGuider, job: Job, on_step: Callable[[int], None]) -> None:
        self.guider, self.job, self.on_step = guider, job, on_step

    def __call__(self, model, x, sigmas, extra_args, callback, disable=None):
        """Return latents [B, 64, T]. x is only asked for its device: the job has its own noise."""
        run = extra_args["model_options"]["transformer_options"][RUN_KEY]
        levels = self.job.levels
        # Every level's modulation at once, before the first forward.
        dtype = self.guider.model_patcher.model.get_dtype_inference()
        run.expect([level for level in levels if level > 0], x.to(dtype))
        current = x  # the latents of the latest call, for core's callback

        def velocity(latents: torch.Tensor, at: Evaluation) -> torch.Tensor:
            nonlocal current
            run.at = self.guider.at = at  # core passes only x and sigma
            current = latents.transpose(1, 2)
            # The network reads the level from the Run. At t = 0 core's data would be x and tell no velocity.
            sigma = at.t or 1.0
            data = model(current, current.new_full((len(current),), sigma), **extra_args)
            return ((current - data) / sigma).transpose(1, 2)

        def after_step(index: int, data: torch.Tensor) -> None:
            self.on_step(index)
            callback({"i": index, "denoised": data.transpose(1, 2), "x": current, "sigma": levels[index]})

        return solve(self.job, velocity, x.device, after_step).transpose(1, 2)
