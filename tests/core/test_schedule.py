"""Noise levels fall from 1 to 0, whoever made them."""

from itertools import pairwise

import pytest

from acestep_pack.acestep_core.checkpoints.presets import PRESETS, resolve
from acestep_pack.acestep_core.pipeline.schedule import TURBO_LEVELS, custom_schedule, schedule, start_at, warp

STEPS = [1, 2, 7, 8, 50, 200]
SHIFTS = [0.1, 1.0, 2.0, 3.0, 10.0]


@pytest.mark.parametrize("n_steps", STEPS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_schedule_falls_from_noise_to_data_in_as_many_steps_as_asked(n_steps: int, shift: float) -> None:
    levels = schedule(n_steps, shift)
    assert len(levels) == n_steps + 1
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert all(earlier > later for earlier, later in pairwise(levels))


@pytest.mark.parametrize("n_steps", STEPS)
def test_shift_one_is_evenly_spaced(n_steps: int) -> None:
    gaps = [earlier - later for earlier, later in pairwise(schedule(n_steps, 1.0))]
    assert gaps == pytest.approx([1 / n_steps] * n_steps)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_larger_shift_stays_longer_with_noise(t: float) -> None:
    warped = [warp(t, shift) for shift in SHIFTS]
    assert warped == sorted(warped)
    assert warp(t, 1.0) == pytest.approx(t)


def test_the_official_turbo_schedule_is_among_the_distilled_levels() -> None:
    assert len(TURBO_LEVELS) == 20
    for shift in (1.0, 2.0, 3.0):
        assert set(schedule(8, shift)[:-1]) <= set(TURBO_LEVELS)


@pytest.mark.parametrize(
    ("n_steps", "shift", "sentence"),
    [
        (0, 3.0, "steps must be 1 to 200, got 0"),
        (201, 3.0, "steps must be 1 to 200, got 201"),
        (8, 0.0, "shift must be above 0 and at most 10, got 0"),
        (8, 10.1, "shift must be above 0 and at most 10, got 10.1"),
        (8, float("nan"), "shift must be above 0"),
    ],
)
def test_steps_and_shift_out_of_range_are_refused(n_steps: int, shift: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        schedule(n_steps, shift)


@pytest.mark.parametrize("levels", [(1.0,), (0.9, 0.5, 0.1), (1, 0.5, 0), (0.7, 0.3, 0.0, 0.0)])
def test_own_levels_are_kept_and_end_at_zero_once(levels: tuple[float, ...]) -> None:
    ended = custom_schedule(levels)
    assert ended == (*(float(level) for level in levels if level), 0.0)


@pytest.mark.parametrize("level", [0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085])
def test_on_turbo_an_own_level_moves_to_the_nearest_distilled_one(level: float) -> None:
    (snapped, end) = custom_schedule((level,), turbo=True)
    assert end == 0.0
    assert all(abs(snapped - level) <= abs(known - level) for known in TURBO_LEVELS)


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ((), "custom timesteps are empty"),
        ((0.0,), "custom timesteps are empty"),
        ((1.1, 0.5), "must fall from at most 1 towards 0; 1.1 does not"),
        ((0.5, 0.9), "0.9 does not"),
        ((0.5, 0.5), "0.5 does not"),
        ((0.5, -0.1), "-0.1 does not"),
        ((0.5, 0.0, 0.2), "0 does not"),
        ((float("nan"),), "nan does not"),
        ((float("inf"),), "inf does not"),
    ],
)
def test_own_levels_that_do_not_fall_are_refused(levels: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        custom_schedule(levels)


@pytest.mark.parametrize(("noise_level", "first"), [(1.0, 1.0), (0.6, 0.5), (0.4, 0.5), (0.0, 0.25), (0.875, 1.0)])
def test_a_run_can_begin_at_the_nearest_level_above_zero(noise_level: float, first: float) -> None:
    started = start_at((1.0, 0.75, 0.5, 0.25, 0.0), noise_level)
    assert (started[0], started[-1]) == (first, 0.0)


@pytest.mark.parametrize("variant", PRESETS)
def test_auto_is_the_preset_and_warns_of_nothing(variant: str) -> None:
    preset, resolved = PRESETS[variant], resolve(variant)
    assert (resolved.n_steps, resolved.shift, resolved.guidance) == (
        preset.n_steps,
        preset.shift,
        preset.guidance,
    )
    assert resolved.warnings == ()


@pytest.mark.parametrize(
    ("variant", "chosen", "warning"),
    [
        ("turbo", {"guidance": 7.0}, "turbo has guidance distilled in: guidance 7 will distort, use 1"),
        ("turbo", {"n_steps": 50}, "turbo gains nothing from 50 steps, it was made for 8"),
        ("turbo-shift1", {"shift": 3.0}, "turbo-shift1 was distilled at shift 1, shift 3 is untested"),
        ("sft", {"n_steps": 8}, "sft needs more than 8 steps, it was made for 50"),
        ("base", {"guidance": 1.0}, "base without guidance ignores much of the prompt, it was made for 7"),
    ],
)
def test_a_choice_known_to_spoil_the_sound_is_kept_with_a_warning(variant: str, chosen: dict, warning: str) -> None:
    resolved = resolve(variant, **chosen)
    assert {name: getattr(resolved, name) for name in chosen} == chosen
    assert resolved.warnings == (warning,)
