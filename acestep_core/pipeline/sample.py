"""The sampling loop: from noise to latents along a schedule, whatever computes the velocity.

Conditions, guidance and hosts are behind `velocity(x, at)`. Everything here is
float32 [B, T, 64] with t = 1 for noise and t = 0 for data; the velocity is noise − data.
Source: ace-step/ACE-Step-1.5, `acestep/models/{turbo,base}/modeling_*.py`, `generate_audio`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .preserve import Preserve, blend
from .wavelet import Dcw, correct


@dataclass(frozen=True)
class Evaluation:
    """One call of the model."""

    t: float  # noise level, 1 = noise
    step: int  # index of the step
    corrector: bool = False  # Heun's second call of a step
    origin: bool = False  # a morph asks for the prompt it comes from


Velocity = Callable[[Tensor, Evaluation], Tensor]
FreshNoise = Callable[[], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """What a sampler does besides following the schedule; every default does nothing."""

    solver: str = "euler"  # a key of SOLVERS
    norm_limit: float = 0.0  # largest ‖v‖ as a multiple of ‖x‖, 0 = no limit
    ema: float = 0.0  # part of the previous velocity that is kept, 0 to below 1
    dcw: Dcw = field(default_factory=Dcw)  # wavelet correction after each step
    heun_last: bool = False  # Heun evaluates t = 0 too: base and sft checkpoints do, turbo ones do not
    latent_shift: float = 0.0  # added to the finished latents,
    latent_rescale: float = 1.0  # after they are multiplied by this

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f'solver "{self.solver}" is unknown; choose one of {", ".join(SOLVERS)}')
        if self.norm_limit < 0:
            raise ValueError(f"velocity limit must be 0 (off) or above, got {self.norm_limit:g}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"velocity EMA must be 0 (off) to below 1, got {self.ema:g}")
        if not self.latent_rescale > 0:
            raise ValueError(f"latent rescale must be above 0, 1 is off, got {self.latent_rescale:g}")


@dataclass(frozen=True)
class Step:
    """One step of the schedule, and what a solver may use in it."""

    index: int
    t: float
    t_next: float
    velocity: Velocity  # for a second evaluation
    settings: SamplerSettings
    fresh_noise: FreshNoise | None  # for solvers that add noise


def sample(
    velocity: Velocity,
    noise: Tensor,
    levels: Sequence[float],
    settings: SamplerSettings,
    *,
    start: Tensor | None = None,
    preserve: Preserve | None = None,
    fresh_noise: FreshNoise | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return latents [B, T, 64] sampled from noise [B, T, 64] along levels, which fall to 0.

    start: clean latents to begin from, mixed with noise at the first level. fresh_noise: what the
    `sde` solver draws. on_step(index, predicted data) is called after every step.
    """
    solve = SOLVERS[settings.solver]
    n_steps = len(levels) - 1
    x = noise if start is None else mix(noise, start, levels[0])
    previous: Tensor | None = None
    for index, (t, t_next) in enumerate(pairwise(levels)):
        step = Step(index, t, t_next, velocity, settings, fresh_noise)
        v = velocity(x, Evaluation(t, index))
        if settings.norm_limit:
            v = limit_norm(v, x, settings.norm_limit)
        if settings.ema and previous is not None:
            v = (1 - settings.ema) * v + settings.ema * previous
        previous = v
        data = x - t * v
        x = solve(x, v, step)
        if settings.dcw.mode != "off":
            x = correct(x, data, t, settings.dcw)
        if preserve is not None and index < round(preserve.keep.injection * n_steps) and t_next > 0:
            x = torch.where(preserve.inside[..., None], x, mix(noise, preserve.source, t_next))
        if on_step is not None:
            on_step(index, data)
    return finish(x, settings, preserve)


def mix(noise: Tensor, data: Tensor, t: float) -> Tensor:
    """Return data at noise level t."""
    return t * noise + (1 - t) * data


def limit_norm(v: Tensor, x: Tensor, limit: float) -> Tensor:
    """Return v scaled down, item by item, to at most limit times the norm of x."""
    size = v.flatten(1).norm(dim=1)[:, None, None] + 1e-10
    return v * torch.clamp(limit * (x.flatten(1).norm(dim=1)[:, None, None] + 1e-10) / size, max=1.0)


def finish(x: Tensor, settings: SamplerSettings, preserve: Preserve | None) -> Tensor:
    """Return x rescaled and shifted, then blended with what is kept, which neither of them changes."""
    if (settings.latent_rescale, settings.latent_shift) != (1, 0):
        x = x * settings.latent_rescale + settings.latent_shift
    return x if preserve is None else blend(x, preserve)


def euler(x: Tensor, v: Tensor, step: Step) -> Tensor:
    """Return x one straight step on."""
    return x - v * (step.t - step.t_next)


def heun(x: Tensor, v: Tensor, step: Step) -> Tensor:
    """Return x moved by the mean of the velocities at both ends of the step; two evaluations."""
    dt = step.t - step.t_next
    if step.t_next <= 0 and not step.settings.heun_last:
        return x - v * dt
    v_next = step.velocity(x - v * dt, Evaluation(step.t_next, step.index, corrector=True))
    return x - 0.5 * (v + v_next) * dt


def sde(x: Tensor, v: Tensor, step: Step) -> Tensor:
    """Return the predicted data, noised afresh to the next level of the schedule.

    The official base model noises to an unwarped level here, which its next query does not match.
    """
    data = x - step.t * v
    if step.t_next <= 0:
        return data
    if step.fresh_noise is None:
        raise ValueError('the "sde" solver needs a source of fresh noise')
    return mix(step.fresh_noise(), data, step.t_next)


SOLVERS = {"euler": euler, "heun": heun, "sde": sde}
