"""Noise levels: the t of each model call, from 1 (noise) down to 0 (data).

Source: ace-step/ACE-Step-1.5, `acestep/models/{turbo,base}/modeling_*.py`, `generate_audio`.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_STEPS = 200
MAX_SHIFT = 10.0


def warp(t: float, shift: float) -> float:
    """Return the level t in [0, 1] moved towards noise by shift > 1, towards data by shift < 1."""
    return shift * t / (shift * t + (1 - t))  # in this form exactly 1 at t = 1 for every shift


# The levels a turbo checkpoint was distilled at: shifts 1, 2 and 3 of an 8-step schedule.
TURBO_LEVELS = tuple(sorted({warp(i / 8, shift) for shift in (1, 2, 3) for i in range(1, 9)}, reverse=True))


def schedule(n_steps: int, shift: float) -> tuple[float, ...]:
    """Return n_steps + 1 levels from 1 to 0, evenly spaced before the shift.

    Raises ValueError for a step count or shift out of range.
    """
    if not 1 <= n_steps <= MAX_STEPS:
        raise ValueError(f"steps must be 1 to {MAX_STEPS}, got {n_steps}")
    if not 0 < shift <= MAX_SHIFT:
        raise ValueError(f"shift must be above 0 and at most {MAX_SHIFT:g}, got {shift:g}")
    return tuple(warp(1 - i / n_steps, shift) for i in range(n_steps + 1))


def custom_schedule(levels: Sequence[float], turbo: bool = False) -> tuple[float, ...]:
    """Return the levels with a final 0; for a turbo checkpoint each is replaced by the nearest distilled level.

    Raises ValueError unless the levels lie in (0, 1] and fall from first to last.
    """
    levels = [float(level) for level in levels]
    while levels and levels[-1] == 0:
        levels.pop()
    if not levels:
        raise ValueError("custom timesteps are empty; give at least one level above 0, for example 1.0")
    for earlier, later in zip([float("inf"), *levels], levels, strict=False):
        if not 0 < later <= 1 or later >= earlier:
            raise ValueError(f"custom timesteps must fall from at most 1 towards 0; {later:g} does not")
    if turbo:
        levels = [min(TURBO_LEVELS, key=lambda known: abs(known - level)) for level in levels]
    return (*levels, 0.0)


def start_at(levels: Sequence[float], noise_level: float) -> tuple[float, ...]:
    """Return the schedule from the level nearest to noise_level, the earlier one of two equally near."""
    nearest = min(range(len(levels) - 1), key=lambda i: abs(levels[i] - noise_level))
    return tuple(levels[nearest:])
