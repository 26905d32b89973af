"""A region in seconds as a mask over frames."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.pipeline.region import frame_at, region


def ones(mask: torch.Tensor) -> list[int]:
    return (mask[0] == 1).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("seconds", "frame"), [(0, 0), (0.039, 0), (0.04, 1), (1, 25), (1.079, 26), (10.2, 254), (600, 15_000)]
)
def test_a_moment_lies_in_the_frame_the_official_arithmetic_says(seconds: float, frame: int) -> None:
    # 10.2 s are 254 frames and not 255: a tenth has no exact binary form.
    assert frame_at(seconds) == frame


@pytest.mark.parametrize(
    ("start_s", "end_s", "first", "last"),
    [(1, 2, 25, 49), (0, 0.04, 0, 0), (1.03, 1.99, 25, 48), (2, 0, 50, 99), (0, 0, 0, 99), (0, 4, 0, 99)],
)
def test_a_region_holds_the_frames_from_start_up_to_end(start_s: float, end_s: float, first: int, last: int) -> None:
    mask = region(100, start_s, end_s)
    assert mask.shape == (1, 100)
    assert mask.dtype == torch.float32
    assert ones(mask) == list(range(first, last + 1))
    assert mask.sum() == last + 1 - first


@given(st.integers(1, 400), st.data())
def test_a_region_within_one_frame_holds_that_frame(n_frames: int, data: st.DataObject) -> None:
    frame = data.draw(st.integers(0, n_frames - 1))
    assert ones(region(n_frames, frame / 25 + 0.011, frame / 25 + 0.012)) == [frame]


def test_an_end_inside_the_last_frame_of_the_recording_is_the_end() -> None:
    assert torch.equal(region(100, 1, 4.03), region(100, 1))


def test_ramps_are_linear_and_lie_outside_of_the_region() -> None:
    mask = region(100, 1, 2, feather_s=0.16)[0]
    assert ones(mask[None]) == list(range(25, 50))
    torch.testing.assert_close(mask[20:26], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1]))
    torch.testing.assert_close(mask[49:55], torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0]))


def test_ramps_are_cut_where_the_song_begins_and_ends() -> None:
    mask = region(100, 0.08, 3.92, feather_s=0.16)[0]
    torch.testing.assert_close(mask[:3], torch.tensor([0.6, 0.8, 1]))
    torch.testing.assert_close(mask[-3:], torch.tensor([1, 0.8, 0.6]))


def test_a_region_up_to_the_edges_has_no_ramp_there() -> None:
    assert torch.equal(region(100, 0, 0, feather_s=1), torch.ones(1, 100))
    assert region(100, 0, 2, feather_s=1)[0, 0] == 1
    assert region(100, 2, 0, feather_s=1)[0, -1] == 1


@given(st.floats(0, 3.9), st.floats(0.05, 4), st.floats(0, 3))
def test_a_region_and_its_inverse_are_everything(start_s: float, length_s: float, feather_s: float) -> None:
    end_s = min(4.0, start_s + length_s)
    mask, rest = (region(100, start_s, end_s, feather_s, invert) for invert in (False, True))
    assert torch.equal(mask + rest, torch.ones(1, 100))
    assert bool(((mask >= 0) & (mask <= 1)).all())


def test_the_inverse_of_everything_is_nothing() -> None:
    assert torch.equal(region(100, 0, 0, invert=True), torch.zeros(1, 100))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1, 1), "the region from 1 s to 1 s is empty; set its end after its start"),
        ((2, 1.5), "the region from 2 s to 1.5 s is empty; set its end after its start"),
        (
            (1, 4.5),
            "the region from 1 s to 4.5 s is past the end of the latent at 4 s; move it inside, or set its end to 0 "
            "for the end of the latent",
        ),
        (
            (4, 0),
            "the region from 4 s to 4 s is past the end of the latent at 4 s; move it inside, or set its end to 0 "
            "for the end of the latent",
        ),
        ((-1, 1), "start and feather must be 0 s or more, got -1 s and 0 s"),
        ((0, 1, -0.5), "start and feather must be 0 s or more, got 0 s and -0.5 s"),
    ],
)
def test_a_region_that_is_none_is_refused_in_one_sentence(arguments: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        region(100, *arguments)
