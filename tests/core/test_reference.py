"""Which 30 seconds of a recording count, and what a reference is made of."""

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE
from acestep_pack.acestep_core.pipeline.reference import EXCERPT_SAMPLES, PART_SAMPLES, Reference, excerpt


def counting(n_samples: int, n_items: int = 1) -> Tensor:
    """A recording whose samples tell their place: exact in float64, negative on the right."""
    places = torch.arange(n_samples, dtype=torch.float64)
    return torch.stack((places, -places - 1)).expand(n_items, -1, -1)


def latents(n_recordings: int, value: float = 0.0) -> Tensor:
    return torch.full((n_recordings, 750, 64), value)


@pytest.mark.parametrize("n_samples", [1, 7, SAMPLE_RATE, 10 * SAMPLE_RATE + 1, 30 * SAMPLE_RATE, 95 * SAMPLE_RATE + 7])
def test_an_excerpt_is_always_30_s(n_samples: int) -> None:
    assert excerpt(counting(n_samples, 2)).shape == (2, 2, 30 * SAMPLE_RATE)


def test_30_s_are_heard_as_they_are() -> None:
    given = counting(EXCERPT_SAMPLES)
    assert torch.equal(excerpt(given), given)


@pytest.mark.parametrize("n_samples", [30 * SAMPLE_RATE + 1, 31 * SAMPLE_RATE, 200 * SAMPLE_RATE + 2])
def test_a_long_recording_is_heard_at_its_front_a_third_in_and_at_its_end(n_samples: int) -> None:
    front, middle, end = excerpt(counting(n_samples)).split(PART_SAMPLES, dim=-1)
    for part, start in ((front, 0), (middle, n_samples // 3), (end, n_samples - PART_SAMPLES)):
        assert torch.equal(part, counting(n_samples)[..., start : start + PART_SAMPLES])


@pytest.mark.parametrize("n_samples", [2 * SAMPLE_RATE, 5 * SAMPLE_RATE, 15 * SAMPLE_RATE])
def test_a_recording_that_fits_into_30_s_is_repeated_without_a_break(n_samples: int) -> None:
    given = counting(n_samples)
    assert torch.equal(excerpt(given), given.repeat(1, 1, EXCERPT_SAMPLES // n_samples))


def test_an_excerpt_is_the_same_every_time_and_leaves_the_recording_alone() -> None:
    given = counting(40 * SAMPLE_RATE)
    assert torch.equal(excerpt(given), excerpt(given))
    assert torch.equal(given, counting(40 * SAMPLE_RATE))


def test_recordings_beside_others_come_behind_them() -> None:
    both = Reference(latents(1, 2.0)).beside(Reference(latents(2, 1.0)))
    assert both.n_recordings == 3
    assert both.latents[:, 0, 0].tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("shape", [(750, 64), (0, 750, 64), (1, 749, 64), (1, 64, 750)])
def test_latents_of_another_shape_are_no_reference(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a reference must be \[recordings, 750, 64\], got"):
        Reference(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_reference_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the reference holds NaN or infinity"):
        Reference(latents(1, value))
