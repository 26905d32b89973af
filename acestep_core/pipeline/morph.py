"""Morph (flow-edit): moves a song from one prompt towards another, keeping the rest of it.

The model gets the song under the same noise with both prompts, and only the difference of the velocities moves it, so
that what they agree on stays. `Evaluation.origin` tells `velocity` which prompt is meant.
Source: ace-step/ACE-Step-1.5, `acestep/models/common/flow_edit.py` and `flow_edit_helpers.py` (main of
2026-06-26), which has Euler steps and APG only; FlowEdit: Kulikov et al., 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import Guidance, apg, cfg
from .preserve import Preserve
from .sample import Evaluation, FreshNoise, SamplerSettings, Velocity, finish, limit_norm, mix


@dataclass(frozen=True)
class Morph:
    """Which steps turn a song from its own prompt to another, and how many draws of noise each averages."""

    start: float = 0.0  # part of the steps that are left out; more stays closer to the song
    end: float = 1.0  # part after which the target prompt goes on alone
    n_draws: int = 1  # draws of noise in each step, averaged

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"a morph must satisfy 0 <= start <= end <= 1, got {self.start:g} to {self.end:g}")
        if self.n_draws < 1:
            raise ValueError(f"a morph needs at least 1 sample of noise a step, got {self.n_draws}")

    def steps(self, n_steps: int) -> range:
        """Return the steps of n_steps in which both prompts are asked."""
        return range(int(n_steps * self.start), int(n_steps * self.end))


def morph(
    velocity: Velocity,
    source: Tensor,
    levels: Sequence[float],
    change: Morph,
    settings: SamplerSettings,
    fresh_noise: FreshNoise,
    *,
    preserve: Preserve | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return clean latents [B, T, 64] moved from the origin prompt to the target, along levels that fall to 0.

    Of the settings, the velocity limit, the EMA, rescale and shift apply. Where `preserve` keeps, the song is put back
    in every step. on_step(index, the song so far) is called after each step that is not left out.
    """
    n_steps, steps = len(levels) - 1, change.steps(len(levels) - 1)
    origin, target = (_Prompt(velocity, settings, is_origin) for is_origin in (True, False))
    outside = None if preserve is None else ~preserve.inside[..., None]
    song = source  # the result so far, without noise
    for index in steps:
        t, t_next = levels[index], levels[index + 1]
        noised = [mix(fresh_noise(), source, t) for _ in range(change.n_draws)]
        before = origin(noised, t, index)
        after = target([x + (song - source) for x in noised], t, index)
        song = _put_back(song + (t_next - t) * (after - before), outside, source)
        if on_step is not None:
            on_step(index, song)
    if steps.stop == n_steps:
        return finish(song, settings, preserve)

    noise = fresh_noise()
    x = mix(noise, source, levels[steps.stop]) + (song - source)
    for index in range(steps.stop, n_steps):
        t, t_next = levels[index], levels[index + 1]
        v = target([x], t, index)
        data = x - t * v
        x = _put_back(x - v * (t - t_next), outside, mix(noise, source, t_next))
        if on_step is not None:
            on_step(index, data)
    return finish(x, settings, preserve)


class MorphGuide:
    """Guidance of both prompts, each with its own APG momentum.

    All draws of a step start from the same momentum; it advances once a step, by the mean of their differences.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self._momenta = {is_origin: _Momentum() for is_origin in (True, False)}

    def __call__(self, cond: Tensor, uncond: Tensor, x: Tensor, at: Evaluation) -> Tensor:
        """Return the guided velocity [B, T, 64] of two predictions for one prompt and one draw of noise, x."""
        if self.guidance.method == "cfg":
            return cfg(cond, uncond, self.guidance.scale)
        momentum = self._momenta[at.origin]
        guided, advanced = apg(cond, uncond, self.guidance.scale, momentum.before(at.step))
        momentum.draws.append(advanced)
        return guided


class _Momentum:
    """A momentum that is constant within a step."""

    def __init__(self) -> None:
        self.draws: list[Tensor] = []
        self._step = -1
        self._settled: Tensor | None = None

    def before(self, step: int) -> Tensor | None:
        """Return the momentum at the start of a step, after the draws of the step before were averaged."""
        if step != self._step and self.draws:
            # Momentum is linear: the mean over draws equals one update by the mean difference.
            self._settled, self.draws = torch.stack(self.draws).mean(0), []
        self._step = step
        return self._settled


class _Prompt:
    """One prompt's velocities: limited for each draw, averaged over the draws of a step, smoothed over the steps."""

    def __init__(self, velocity: Velocity, settings: SamplerSettings, is_origin: bool) -> None:
        self._velocity, self._settings, self._is_origin = velocity, settings, is_origin
        self._previous: Tensor | None = None

    def __call__(self, draws: Sequence[Tensor], t: float, step: int) -> Tensor:
        v = torch.stack([self._of_draw(x, Evaluation(t, step, origin=self._is_origin)) for x in draws]).mean(0)
        if self._settings.ema and self._previous is not None:
            v = (1 - self._settings.ema) * v + self._settings.ema * self._previous
        self._previous = v
        return v

    def _of_draw(self, x: Tensor, at: Evaluation) -> Tensor:
        v = self._velocity(x, at)
        return limit_norm(v, x, self._settings.norm_limit) if self._settings.norm_limit else v


def _put_back(x: Tensor, outside: Tensor | None, source: Tensor) -> Tensor:
    return x if outside is None else torch.where(outside, source, x)
