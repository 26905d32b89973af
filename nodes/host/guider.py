"""Sampling through ComfyUI: the core's loop inside core's guider and sampler, so that wrappers, hooks,
patches, compilation and interruption all apply.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import comfy.model_sampling
import comfy.samplers
import torch

from ...acestep_core.pipeline.generate import Job, solve
from ...acestep_core.pipeline.guidance import Guidance, Guide
from ...acestep_core.pipeline.morph import MorphGuide
from ...acestep_core.pipeline.sample import Evaluation
from .conditioning import Prompt
from .network import SAMPLING_KEY, Sampling

# What stands for the level 0 where core decides by it: a power of two, so that multiplying and dividing by it is exact.
LEAST_LEVEL = 2.0**-10


class AceStepGuider(comfy.samplers.CFGGuider):
    """Core's guider with our guidance methods, and no unconditional pass where they do not need one.

    A morph gives it a second pair of conditions, for the prompt it comes from, and its own guide.
    """

    def __init__(self, model_patcher, guidance: Guidance, shift: float) -> None:
        super().__init__(model_patcher)
        self.guidance, self.shift = guidance, shift
        self.cfg = guidance.scale  # core's own field, which a node on the MODEL may set for a call (CFGOverride)
        self.guide: Guide | MorphGuide = Guide(guidance)
        self.at = Evaluation(t=1.0, step=0)
        self.sampling = Sampling()  # of this run, once it has begun

    def set_origin(self, positive: list, negative: list) -> None:
        """Take the prompt that a morph comes from, with its text and without."""
        self.inner_set_conds({"positive_from": positive, "negative_from": negative})
        self.guide = MorphGuide(self.guidance)

    def inner_sample(self, *args, **kwargs):
        """Sample while the model counts shares of a schedule by this run's shift: ranges of conditions and hooks do."""
        before = self.inner_model.model_sampling
        if isinstance(before, comfy.model_sampling.ModelSamplingDiscreteFlow):
            self.inner_model.model_sampling = copy.copy(before)
            self.inner_model.model_sampling.shift = self.shift
        try:
            return super().inner_sample(*args, **kwargs)
        finally:
            self.inner_model.model_sampling = before

    @property
    def changes_by_level(self) -> bool:
        """Tell whether core decides by the noise level which condition, weights or window a call is for."""
        ranged = ("timestep_start", "timestep_end", "hooks")
        conds = (cond for conds in self.conds.values() for cond in conds)
        return "context_handler" in self.model_options or any(
            cond.get(key) is not None for cond in conds for key in ranged
        )

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """Return the predicted data of latents x [B, 64, T] under guidance."""
        options = dict(model_options or {})
        guidance = self.guide.guidance = replace(self.guidance, scale=self.cfg)
        applies = guidance.applies_at(self.at.t)
        if applies:
            # A guidance function that another node has put on the MODEL goes first.
            options.setdefault("sampler_cfg_function", self._combine)
        scale = guidance.scale if applies else 1.0
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
    shift: float,
    morph_from: Prompt | None = None,
    on_step: Callable[[int], None],
) -> tuple[torch.Tensor, Sampling]:
    """Return latents [B, T, 64] of a job, float32 on the CPU, and what is known of its sampling.

    seed: what core tells others that it sampled with. shift: of the schedule, by which core counts shares of it.
    morph_from: the prompt that a morph comes from.
    """
    guider = AceStepGuider(model_patcher, job.guidance, shift)
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
    return samples.transpose(1, 2).float().cpu(), guider.sampling


class _Sampler:
    """The core's loop as one of ComfyUI's sampler functions."""

    def __init__(self, guider: AceStepGuider, job: Job, on_step: Callable[[int], None]) -> None:
        self.guider, self.job, self.on_step = guider, job, on_step

    def __call__(self, model, x, sigmas, extra_args, callback, disable=None):
        """Return latents [B, 64, T]. x is only asked for its device: the job has its own noise."""
        sampling: Sampling = extra_args["model_options"]["transformer_options"][SAMPLING_KEY]
        self.guider.sampling = sampling
        levels = sampling.levels = self.job.levels
        # The network reads the level from the Sampling. At t = 0 core's data would be x and tell no velocity.
        last = LEAST_LEVEL if self.guider.changes_by_level else 1.0
        current = x  # the latents of the latest call, for core's callback

        def velocity(latents: torch.Tensor, at: Evaluation) -> torch.Tensor:
            nonlocal current
            sampling.at = self.guider.at = at  # core passes only x and sigma
            current = latents.transpose(1, 2)
            sigma = at.t or last
            data = model(current, current.new_full((len(current),), sigma), **extra_args)
            return ((current - data) / sigma).transpose(1, 2)

        def after_step(index: int, data: torch.Tensor) -> None:
            self.on_step(index)
            callback({"i": index, "denoised": data.transpose(1, 2), "x": current, "sigma": levels[index]})

        return solve(self.job, velocity, x.device, after_step).transpose(1, 2)
