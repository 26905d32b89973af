"""The sampling loop: from noise to latents along a schedule, whatever computes the velocity.

Knows nothing of conditions, guidance or hosts: `velocity(x, at)` answers for them. Everything here is
float32 [B, T, 64] with t = 1 for noise and t = 0 for data; the velocity is noise − data.
Source: ace-step/ACE-Step-1.5, `acestep/models/{turbo,base}/modeling_*.py`, `generate_audio`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .wavelet import Dcw, correct


@dataclass(frozen=True)
class Evaluation:
    """Where the model is asked: noise level, index of the step, whether this is Heun's second look, and whether
    a morph asks for the prompt it comes from."""

    t: float
    step: int
    corrector: bool = False
    origin: bool = False


Velocity = Callable[[Tensor, Evaluation], Tensor]
FreshNoise = Callable[[], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """What a sampler does besides following the schedule; every default does nothing.

    norm_limit: largest ‖v‖ as a multiple of ‖x‖, 0 = none. ema: part of the previous velocity kept, 0 to 1.
    heun_last: let Heun look at t = 0 too, as base and sft checkpoints do and turbo ones do not. latent_rescale,
    latent_shift: the finished latents are multiplied by the one, then the other is added.
    """

    solver: str = "euler"
    norm_limit: float = 0.0
    ema: float = 0.0
    dcw: Dcw = field(default_factory=Dcw)
    heun_last: bool = False
    latent_shift: float = 0.0
    latent_rescale: float = 1.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f'solver "{self.solver}" is unknown; choose one of {", ".join(SOLVERS)}')
        if self.norm_limit < 0:
            raise ValueError(f"velocity limit must be 0 (off) or above, got {self.norm_limit:g}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"velocity EMA must be 0 (off) to below 1, got {self.ema:g}")
        if not self.latent_rescale > 0:
            raise ValueError(f"latent rescale must be above 0, 1 is off, got {self.latent_rescale:g}")


@dataclass(frozen=True, eq=False)
class Preserve:
    """What a repaint keeps of a source [B, T, 64], by a mask [B, T]: 0 = keep, 1 = generate, between = blend.

    injection: part of the steps after which the source, at the step's noise level, is put back where the mask
    is 0. crossfade_frames: frames outside each edge over which the result fades into the source at the end.
    """

    source: Tensor
    mask: Tensor
    injection: float = 0.5
    crossfade_frames: int = 12

    @property
    def inside(self) -> Tensor:
        """Return where anything at all is generated, bool [B, T]."""
        return self.mask > 0


@dataclass(frozen=True)
class Step:
    """One stretch of the schedule, as a solver sees it."""

    index: int
    t: float
    t_next: float


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
        step = Step(index, t, t_next)
        v = velocity(x, Evaluation(t, index))
        if settings.norm_limit:
            v = limit_norm(v, x, settings.norm_limit)
        if settings.ema and previous is not None:
            v = (1 - settings.ema) * v + settings.ema * previous
        previous = v
        data = x - t * v
        x = solve(x, v, step, velocity, settings, fresh_noise)
        if settings.dcw.mode != "off":
            x = correct(x, data, t, settings.dcw)
        if preserve is not None and index < round(preserve.injection * n_steps) and t_next > 0:
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
    """Return what a run leaves: x rescaled and shifted, and then what is kept put back, which neither touches."""
    if (settings.latent_rescale, settings.latent_shift) != (1, 0):
        x = x * settings.latent_rescale + settings.latent_shift
    return x if preserve is None else blend(x, preserve)


def blend(x: Tensor, preserve: Preserve) -> Tensor:
    """Return x where the mask is 1, the source where it is 0, and a linear fade on the frames around hard edges."""
    weight = torch.maximum(preserve.mask.to(x), soften(preserve.mask >= 1, preserve.crossfade_frames).to(x))
    return torch.lerp(preserve.source, x, weight[..., None])


def soften(inside: Tensor, n_frames: int) -> Tensor:
    """Return weights [B, T]: 1 inside, falling linearly to 0 over n_frames outside every edge."""
    frame = torch.arange(inside.shape[1], device=inside.device)
    big = inside.shape[1] + n_frames + 1
    before = torch.where(inside, frame, -big).cummax(1).values  # the last inside frame so far
    after = torch.where(inside, frame, big + frame[-1]).flip(1).cummin(1).values.flip(1)
    distance = torch.minimum(frame - before, after - frame)
    return (1 - distance / (n_frames + 1)).clamp(0, 1)


def euler(
    x: Tensor,
    v: Tensor,
    step: Step,
    velocity: Velocity,
    settings: SamplerSettings,
    fresh_noise: FreshNoise | None,
) -> Tensor:
    """Return x one straight step on."""
    return x - v * (step.t - step.t_next)


def heun(
    x: Tensor,
    v: Tensor,
    step: Step,
    velocity: Velocity,
    settings: SamplerSettings,
    fresh_noise: FreshNoise | None,
) -> Tensor:
    """Return x moved by the mean of the velocities at both ends of the step; two evaluations."""
    dt = step.t - step.t_next
    if step.t_next <= 0 and not settings.heun_last:
        return x - v * dt
    v_next = velocity(x - v * dt, Evaluation(step.t_next, step.index, corrector=True))
    return x - 0.5 * (v + v_next) * dt


def sde(
    x: Tensor,
    v: Tensor,
    step: Step,
    velocity: Velocity,
    settings: SamplerSettings,
    fresh_noise: FreshNoise | None,
) -> Tensor:
    """Return the predicted data, noised afresh to the next level of the schedule.

    The official base model noises to an unwarped level here, which its next query does not match.
    """
    data = x - step.t * v
    if step.t_next <= 0:
        return data
    if fresh_noise is None:
        raise ValueError('the "sde" solver needs a source of fresh noise')
    return mix(fresh_noise(), data, step.t_next)


SOLVERS = {"euler": euler, "heun": heun, "sde": sde}
