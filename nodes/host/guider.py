"""Sampling through ComfyUI: the core's loop inside core's guider and sampler, so that wrappers, hooks,
patches, compilation and interruption all apply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.model_patcher
import comfy.samplers
import comfy.utils
import torch

from ...acestep_core.pipeline.guidance import Guidance, Guide
from ...acestep_core.pipeline.morph import Morph, MorphGuide, morph
from ...acestep_core.pipeline.sample import Evaluation, Preserve, SamplerSettings, sample
from .model import RUN_KEY


class AceStepGuider(comfy.samplers.CFGGuider):
    """Core's guider with our guidance methods, and no unconditional pass where they do not need one.

    A morph gives it a second pair of conditions, for the prompt it comes from, and its own guide.
    """

    def __init__(self, model_patcher, guidance: Guidance) -> None:
        super().__init__(model_patcher)
        self.guidance = guidance
        self.guide = Guide(guidance)
        self.morph_guide: MorphGuide | None = None
        self.at = Evaluation(t=1.0, step=0)

    def set_origin(self, positive: list, negative: list) -> None:
        """Take the prompt that a morph comes from, with its text and without."""
        self.inner_set_conds({"positive_from": positive, "negative_from": negative})
        self.morph_guide = MorphGuide(self.guidance)

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
        if self.morph_guide is not None:
            guided = self.morph_guide(cond, uncond, self.at)
        else:
            guided = self.guide(cond, uncond, x, self.at.t, self.at.corrector)
        return sigma * guided.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Morphing:
    """A morph as ComfyUI sees it: where in the steps, and the conditions of the prompt it comes from."""

    window: Morph
    positive: list
    negative: list


def run(
    model_patcher,
    positive: list,
    negative: list,
    noise: torch.Tensor,
    levels: tuple[float, ...],
    guidance: Guidance,
    settings: SamplerSettings,
    *,
    seed: int,
    start: torch.Tensor | None = None,
    preserve: Preserve | None = None,
    fresh_noise: Callable[[], torch.Tensor] | None = None,
    morphing: Morphing | None = None,
    on_step: Callable[[int], None],
) -> torch.Tensor:
    """Return latents [B, T, 64] sampled from noise [B, T, 64] along levels, all float32 on the CPU.

    A morph starts from `start`, and draws its noise from fresh_noise instead.
    """
    guider = AceStepGuider(model_patcher, guidance)
    guider.set_conds(positive, negative)
    if morphing is not None:
        guider.set_origin(morphing.positive, morphing.negative)

    def sampler(model, x, sigmas, extra_args, callback, disable=None):
        bound = extra_args["model_options"]["transformer_options"][RUN_KEY]
        # Every level at once, before the first forward.
        bound.expect([level for level in levels if level > 0], x.to(model_patcher.model.get_dtype_inference()))
        device = x.device

        def velocity(latents: torch.Tensor, at: Evaluation) -> torch.Tensor:
            bound.at = guider.at = at
            x = latents.transpose(1, 2)
            # The network reads the level from the Run. At t = 0 core's data would be x and tell no velocity.
            sigma = at.t or 1.0
            data = model(x, x.new_full((len(x),), sigma), **extra_args)
            return ((x - data) / sigma).transpose(1, 2)

        def after_step(index: int, data: torch.Tensor) -> None:
            on_step(index)
            callback({"i": index, "denoised": data.transpose(1, 2), "x": x, "sigma": levels[index]})

        begin = None if start is None else start.to(device)
        draw = None if fresh_noise is None else lambda: fresh_noise().to(device)
        kept = _on(device, preserve)
        if morphing is not None:
            window = morphing.window
            made = morph(velocity, begin, levels, window, settings, draw, preserve=kept, on_step=after_step)
        else:
            made = sample(
                velocity,
                noise.to(device),
                levels,
                settings,
                start=begin,
                preserve=kept,
                fresh_noise=draw,
                on_step=after_step,
            )
        return made.transpose(1, 2)

    clean = torch.zeros_like(noise) if start is None else start
    samples = guider.sample(
        noise.transpose(1, 2).contiguous(),
        clean.transpose(1, 2).contiguous(),
        comfy.samplers.KSAMPLER(sampler),
        torch.tensor(levels),
        disable_pbar=True,
        seed=seed,
    )
    return samples.transpose(1, 2).float().cpu()


def _on(device: torch.device, preserve: Preserve | None) -> Preserve | None:
    if preserve is None:
        return None
    return replace(preserve, source=preserve.source.to(device), mask=preserve.mask.to(device))
