"""The sampler: from CONDITIONING and noise to latents, take by take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from comfy_api.v0_0_2 import io

from ..acestep_core.constants import MAX_SEED, MAX_TAKES
from ..acestep_core.pipeline.guidance import METHODS
from ..acestep_core.pipeline.morph import Morph
from ..acestep_core.pipeline.options import Options, Retake, official
from ..acestep_core.pipeline.sample import SOLVERS, SamplerSettings
from ..acestep_core.pipeline.schedule import MAX_SHIFT, MAX_STEPS
from ..acestep_core.pipeline.takes import Request
from ..acestep_core.pipeline.wavelet import MODES, Dcw
from .host import progress
from .host.generate import generate
from .host.sockets import CATEGORY, OptionsSocket, SamplerOptions
from .host.widgets import number, unit
from .host.widgets import seed as seed_widget

Number = TypeVar("Number", int, float)

GENERATE = f"{CATEGORY}/generate"


class AceStepSamplerOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSamplerOptions",
            display_name="ACE-Step Sampler Options",
            category=GENERATE,
            description="Settings most songs do not need. Every default changes nothing.",
            search_aliases=["apg", "adg", "heun", "sde", "timesteps", "dcw", "retake", "morph", "flow edit"],
            inputs=[
                io.Combo.Input(
                    "guidance_method",
                    options=list(METHODS),
                    default="apg",
                    tooltip="How guidance is applied, on base and sft models: apg keeps it from distorting, adg turns "
                    "angles frame by frame, cfg is the plain formula.",
                ),
                unit("guidance_start", 0.0, "Lowest noise level with guidance. 0 is the finished song."),
                unit("guidance_end", 1.0, "Highest noise level with guidance. 1 is pure noise, the start of the run."),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="euler",
                    tooltip="euler: one model call a step. heun: two, more exact. sde: euler with fresh seeded noise "
                    "in every step.",
                ),
                io.String.Input(
                    "timesteps",
                    default="",
                    tooltip="Noise levels of your own, falling from 1, such as 1, 0.9, 0.75, 0.5, 0.3. They replace "
                    "steps and shift; turbo models move each to the nearest level they know. Empty is off.",
                ),
                io.Combo.Input(
                    "dcw_mode",
                    options=list(MODES),
                    default="off",
                    tooltip="Wavelet correction after each step: of low or high frequencies over time, of both, or of "
                    "the latents themselves (pix).",
                    advanced=True,
                ),
                number(
                    "dcw_scale",
                    0.05,
                    0.5,
                    "Strength of the wavelet correction; of its low band in double.",
                    step=0.005,
                    advanced=True,
                ),
                number("dcw_high_scale", 0.02, 0.5, "Strength of the high band in double.", step=0.005, advanced=True),
                number(
                    "velocity_limit",
                    0.0,
                    10.0,
                    "Largest velocity, as a multiple of the latents' size. 0 is off; 2 calms runaway steps.",
                    advanced=True,
                ),
                number(
                    "velocity_ema",
                    0.0,
                    0.99,
                    "Part of the previous step's velocity that is kept, 0 to 0.99. 0 is off; 0.1 smooths.",
                    step=0.01,
                    advanced=True,
                ),
                io.Combo.Input(
                    "preset",
                    options=["custom", "official turbo"],
                    default="custom",
                    tooltip="official turbo ignores the fields above and turns on what the official interface turns on"
                    " for turbo models: the double wavelet correction.",
                    advanced=True,
                ),
                unit(
                    "retake_variance",
                    0.0,
                    "How far each take turns towards that of the retake seed. 0 is off, 0.05 to 0.15 "
                    "is subtle, 1 is the other take.",
                    optional=True,
                ),
                io.Int.Input(
                    "retake_seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    optional=True,
                    tooltip="Second seed of the first take; the next takes count up from it. Does nothing while "
                    "retake_variance is 0.",
                ),
                io.Float.Input(
                    "latent_shift",
                    default=0.0,
                    min=-0.2,
                    max=0.2,
                    step=0.01,
                    optional=True,
                    tooltip="Added to the finished latents, not to parts that are kept. 0 is off; -0.04 can help "
                    "against distortion.",
                    advanced=True,
                ),
                io.Float.Input(
                    "latent_rescale",
                    default=1.0,
                    min=0.5,
                    max=1.5,
                    step=0.01,
                    optional=True,
                    tooltip="The finished latents are multiplied by it before the shift, but not parts that are kept. "
                    "1 is off; 0.91 can help against clipping.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "morph_from",
                    optional=True,
                    tooltip="From ACE-Step Encode Song: what the song in the sampler's latent is now. It turns into "
                    "what the sampler's conditioning says. Kept for older workflows: ACE-Step Morph does the same.",
                    advanced=True,
                ),
                unit(
                    "morph_start",
                    0.0,
                    "Part of the steps that a morph leaves out, from the noisy end. Higher stays "
                    "closer to the song. Needs morph_from.",
                    optional=True,
                    advanced=True,
                ),
                unit(
                    "morph_end",
                    1.0,
                    "Part of the steps after which the new words alone go on. Lower follows them "
                    "more. Needs morph_from.",
                    optional=True,
                    advanced=True,
                ),
                io.Int.Input(
                    "morph_samples",
                    default=1,
                    min=1,
                    max=8,
                    optional=True,
                    tooltip="Draws of noise that a morph averages in each step, 1 to 8. More is steadier and takes as "
                    "many times longer. Needs morph_from.",
                    advanced=True,
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For the ACE-Step sampler.")],
        )

    @classmethod
    def execute(
        cls,
        guidance_method,
        guidance_start,
        guidance_end,
        solver,
        timesteps,
        dcw_mode,
        dcw_scale,
        dcw_high_scale,
        velocity_limit,
        velocity_ema,
        preset,
        retake_variance=0.0,
        retake_seed=0,
        latent_shift=0.0,
        latent_rescale=1.0,
        morph_from=None,
        morph_start=0.0,
        morph_end=1.0,
        morph_samples=1,
    ):
        if preset == "official turbo":
            chosen = official(is_turbo=True)
        else:
            dcw = Dcw(dcw_mode, dcw_scale, dcw_high_scale)
            settings = SamplerSettings(solver, norm_limit=velocity_limit, ema=velocity_ema, dcw=dcw)
            interval = (guidance_start, guidance_end)
            chosen = Options(guidance_method, interval, settings, parse_timesteps(timesteps))
        settings = replace(chosen.settings, latent_shift=latent_shift, latent_rescale=latent_rescale)
        chosen = SamplerOptions(replace(chosen, settings=settings, retake=Retake(retake_seed, retake_variance)))
        if morph_from:
            chosen = _with_morph(chosen, morph_from, morph_start, morph_end, morph_samples)
        return io.NodeOutput(chosen)


class AceStepMorph(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepMorph",
            display_name="ACE-Step Morph",
            category=GENERATE,
            description="Moves the song in the sampler's latent from one prompt to another; the rest of it stays.",
            search_aliases=["flow edit", "remix", "style transfer"],
            inputs=[
                io.Conditioning.Input(
                    "morph_from",
                    tooltip="From ACE-Step Encode Song: what the song in the sampler's latent is now. It turns into "
                    "what the sampler's conditioning says.",
                ),
                unit(
                    "start", 0.0, "Part of the steps to leave out, from the noisy end. Higher stays closer to the song."
                ),
                unit("end", 1.0, "Part of the steps after which the new words alone go on. Lower follows them more."),
                io.Int.Input(
                    "samples",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="Draws of noise averaged in each step, 1 to 8. More is steadier and takes as many times "
                    "longer.",
                ),
                OptionsSocket.Input(
                    "options",
                    optional=True,
                    tooltip="From ACE-Step Sampler Options: euler, apg or cfg, and no wavelet correction.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For the ACE-Step sampler.")],
        )

    @classmethod
    def execute(cls, morph_from, start, end, samples, options=None):
        return io.NodeOutput(_with_morph(options or SamplerOptions(Options()), morph_from, start, end, samples))


class AceStepSample(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSample",
            display_name="ACE-Step Sampler",
            category=GENERATE,
            description="Turns noise into latents under the song's conditioning. One seed, or several takes at once.",
            search_aliases=["ksampler", "generate"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ACE-Step Model."),
                io.Conditioning.Input("conditioning", tooltip="From ACE-Step Encode Song."),
                io.Latent.Input(
                    "latent",
                    tooltip="From ACE-Step Encode Song: gives the length. Frames outside its noise mask, if it has "
                    "one, are kept. For a morph, the song to begin from. A batch of empty ones makes as many takes.",
                ),
                seed_widget(
                    "Seed of the first take; the next takes count up from it. A take sounds the same alone or "
                    "among others."
                ),
                io.Int.Input(
                    "takes_per_plan",
                    default=1,
                    min=1,
                    max=MAX_TAKES,
                    tooltip="How many takes to make of each plan, 1 to 8. Without codes there is one plan.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=MAX_STEPS,
                    tooltip="Sampling steps. 0 is auto: 8 on turbo models, 50 on sft and base.",
                ),
                number(
                    "shift",
                    0.0,
                    MAX_SHIFT,
                    "Above 1 spends more steps on structure, below on detail. 0 is auto: that of a "
                    "ModelSampling node on the model, else 3 on turbo, 1 on turbo-shift1, sft and base.",
                ),
                number(
                    "guidance",
                    0.0,
                    30.0,
                    "How strictly sft and base models follow caption and lyrics. 0 is auto: 7 there, "
                    "1 (none) on turbo.",
                ),
                io.String.Input(
                    "seeds",
                    default="",
                    optional=True,
                    tooltip="One seed for each take, separated by commas, in place of seed. Empty is off.",
                    advanced=True,
                ),
                OptionsSocket.Input("options", optional=True, tooltip="From ACE-Step Sampler Options."),
            ],
            outputs=[io.Latent.Output(tooltip="One item a take, plan by plan.")],
        )

    @classmethod
    def execute(cls, model, conditioning, latent, seed, takes_per_plan, steps, shift, guidance, seeds="", options=None):
        options = options or SamplerOptions(Options())
        request = Request(
            seed=seed,
            seeds=parse_seeds(seeds),
            takes_per_plan=takes_per_plan,
            n_steps=steps,
            shift=shift,
            guidance=guidance,
            options=options.options,
        )
        result = generate(model, conditioning, latent, request, options.morph_from)
        for warning in result.warnings:
            progress.log.warning(warning)
        return io.NodeOutput(result.latent, ui={"text": ("\n".join((result.summary, *result.warnings)),)})


def parse_timesteps(text: str) -> tuple[float, ...]:
    """Return the numbers of a text such as "1.0, 0.8, 0.5"; nothing for an empty one.

    Raises ValueError for what is not a number.
    """
    return _numbers(text, "timestep", float)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a text such as "7, 8, 42"; nothing for an empty one.

    Raises ValueError for what is not a whole number.
    """
    return _numbers(text, "seed", int)


def _numbers(text: str, name: str, parse: Callable[[str], Number]) -> tuple[Number, ...]:
    numbers = []
    for word in text.replace(",", " ").split():
        try:
            numbers.append(parse(word))
        except ValueError:
            raise ValueError(f'"{word}" is not a {name}; write numbers separated by commas') from None
    return tuple(numbers)


def _with_morph(options: SamplerOptions, morph_from: list, start: float, end: float, samples: int) -> SamplerOptions:
    return SamplerOptions(replace(options.options, morph=Morph(start, end, samples)), morph_from)
