"""Laws of the splice: what a task keeps is the recording itself, sample for sample, and little is decoded."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.pipeline.preserve import BALANCED, Keep, keep
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.splice import (
    DECODE_MARGIN,
    Span,
    can_splice,
    recordings,
    regions,
    splice,
    windows,
)
from acestep_pack.acestep_core.pipeline.tasks import TEXT2MUSIC, Source, Task, cover, extend, repaint, stitch

CHANNELS = 64
HOP = SAMPLES_PER_FRAME
FADE = round(BALANCED.crossfade_s * SAMPLE_RATE)  # 1200 samples
VAE_REACH = 9  # frames


def music(n_samples: int, n_items: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(n_items, 2, n_samples, generator=torch.Generator().manual_seed(seed))


def song(n_samples: int, n_items: int = 1, seed: int = 1) -> Source:
    """A recording, and as many latents as its frames, the last filled up."""
    n_frames = math.ceil(n_samples / HOP)
    return Source(torch.zeros(n_items, n_frames, CHANNELS), waveform=music(n_samples, n_items, seed))


def hole(n_frames: int, *spans: Span) -> Tensor:
    mask = torch.zeros(1, n_frames)
    for first, last in spans:
        mask[:, first:last] = 1
    return mask


def counted(n_frames: int) -> Tensor:
    """Canvas latents that tell their frame."""
    return torch.arange(float(n_frames))[:, None].expand(-1, CHANNELS)


class Decoder:
    """Stands for a VAE: every sample sounds like the number of its frame, and calls are remembered."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def __call__(self, latents: Tensor) -> Tensor:
        assert latents.shape[0] == 1
        frames = latents[0, :, 0]
        self.spans.append((int(frames[0]), int(frames[-1]) + 1))
        return frames.repeat_interleave(HOP).expand(1, 2, -1)


def spliced(task: Task, row: int = 0) -> Tensor:
    return splice(counted(task.n_frames), task, row, Decoder())


def generated(n_samples: int) -> Tensor:
    """What a Decoder makes of a whole canvas."""
    return (torch.arange(n_samples) // HOP).float().expand(2, -1)


# What is kept, what is new.


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, tuple[Span, ...]]:
    """A canvas and a few regions on it, in order, that do not touch."""
    n_frames = draw(st.integers(1, 120))
    edges = sorted(draw(st.sets(st.integers(0, n_frames), max_size=8)))
    return n_frames, tuple(zip(edges[::2], edges[1::2], strict=False))


@settings(deadline=None, max_examples=80)
@given(case=spans(), tail=st.integers(0, HOP - 1))
def test_every_sample_beyond_a_crossfade_is_the_source_s_and_every_one_inside_is_new(
    case: tuple[int, tuple[Span, ...]], tail: int
) -> None:
    n_frames, holes = case
    source = song(n_frames * HOP - tail)
    task = repaint(source, hole(n_frames, *holes))
    audio = spliced(task)
    assert source.waveform is not None
    assert audio.shape == source.waveform[0].shape
    inside = torch.zeros(n_frames * HOP, dtype=torch.bool)
    near = inside.clone()
    for first, last in holes:
        inside[first * HOP : last * HOP] = True
        near[max(0, first * HOP - FADE) : last * HOP + FADE] = True
    inside, near = inside[: audio.shape[1]], near[: audio.shape[1]]
    assert torch.equal(audio[:, inside], generated(audio.shape[1])[:, inside])
    assert torch.equal(audio[:, ~near], source.waveform[0][:, ~near])


@pytest.mark.parametrize("mode", ["balanced", "conservative", "aggressive"])
def test_a_repaint_of_nothing_is_the_recording_in_any_mode_and_decodes_nothing(mode: str) -> None:
    source, decoder = song(100 * HOP - 7), Decoder()
    task = repaint(source, hole(100), keep(mode))
    assert can_splice(task)
    audio = splice(counted(100), task, 0, decoder)
    assert source.waveform is not None
    assert torch.equal(audio, source.waveform[0])
    assert decoder.spans == []


def test_a_repaint_of_everything_is_all_new() -> None:
    task = repaint(song(100 * HOP), hole(100, (0, 100)))
    assert torch.equal(spliced(task), generated(100 * HOP))


@pytest.mark.parametrize(("n_left", "n_right"), [(0, 50), (50, 0), (25, 75)])
@pytest.mark.parametrize("tail", [0, 1, 700, HOP - 1])
def test_an_extension_keeps_every_sample_of_the_song_but_for_the_crossfade(
    n_left: int, n_right: int, tail: int
) -> None:
    source = song(100 * HOP + tail)
    audio = spliced(extend(source, n_left / 25, n_right / 25))
    assert source.waveform is not None
    own = source.waveform[0]
    # New music begins where the last full frame ends; where there is none, the song's own tail stays.
    n_kept = 100 * HOP if n_right else own.shape[1]
    assert audio.shape[1] == n_left * HOP + n_kept + n_right * HOP
    first, last = (FADE if n_left else 0), n_kept - (FADE if n_right else 0)
    assert torch.equal(audio[:, n_left * HOP :][:, first:last], own[:, first:last])


def test_a_stitch_keeps_both_songs_beyond_the_overlaps() -> None:
    one, two = song(100 * HOP + 300), song(80 * HOP - 900, seed=2)
    audio = spliced(stitch(one, two, bridge_s=1.0, overlap_s=0.4))
    assert one.waveform is not None
    assert two.waveform is not None
    assert audio.shape[1] == (100 + 25 + 80) * HOP - 900
    assert torch.equal(audio[:, : 90 * HOP - FADE], one.waveform[0, :, : 90 * HOP - FADE])
    assert torch.equal(audio[:, 135 * HOP + FADE :], two.waveform[0, :, 10 * HOP + FADE :])
    assert torch.equal(audio[:, 90 * HOP : 135 * HOP], generated(205 * HOP)[:, 90 * HOP : 135 * HOP])


def test_a_stitch_without_a_bridge_leaves_no_gap() -> None:
    one, two = song(50 * HOP + 300), song(50 * HOP, seed=2)
    task = stitch(one, two, bridge_s=0.0, overlap_s=0.2)
    assert recordings(task, 0).shape[1] == 100 * HOP
    assert two.waveform is not None
    assert torch.equal(recordings(task, 0)[:, 50 * HOP :], two.waveform[0])


def test_the_source_of_a_row_is_heard_in_it() -> None:
    source = song(40 * HOP, n_items=2)
    task = repaint(source, torch.cat((hole(40, (0, 10)), hole(40, (30, 40)))))
    assert source.waveform is not None
    for row in range(4):
        audio, own = spliced(task, row), source.waveform[row % 2]
        assert regions(task, row) == (((0, 10),) if row % 2 == 0 else ((30, 40),))
        kept = slice(10 * HOP + FADE, None) if row % 2 == 0 else slice(0, 30 * HOP - FADE)
        assert torch.equal(audio[:, kept], own[:, kept])


def test_a_recording_of_one_item_serves_every_row() -> None:
    latents, waveform = torch.zeros(3, 20, CHANNELS), music(20 * HOP)
    task = repaint(Source(latents, waveform=waveform), hole(20, (0, 5)))
    assert torch.equal(recordings(task, 2), waveform[0])


def test_a_source_is_left_as_it_was() -> None:
    source = song(30 * HOP)
    assert source.waveform is not None
    kept = source.waveform.clone()
    spliced(repaint(source, hole(30, (5, 9)))).zero_()
    assert torch.equal(source.waveform, kept)


def test_only_a_task_that_keeps_recordings_can_be_spliced() -> None:
    mask = hole(30, (5, 9))
    assert can_splice(repaint(song(30 * HOP), mask))
    assert not can_splice(TEXT2MUSIC)
    assert not can_splice(cover(song(30 * HOP)))
    assert not can_splice(repaint(song(30 * HOP), mask, keep("aggressive")))
    assert not can_splice(repaint(Source(torch.zeros(1, 30, CHANNELS)), mask))
    assert not can_splice(stitch(song(30 * HOP), Source(torch.zeros(1, 30, CHANNELS)), 1.0))


# Crossfades.


def crossfaded(n_frames: int, *holes: Span, kept: Keep = BALANCED) -> Tensor:
    """Return how loud the new music is in each sample, where the kept is silent."""
    source = Source(torch.zeros(1, n_frames, CHANNELS), waveform=torch.zeros(1, 2, n_frames * HOP))
    task = repaint(source, hole(n_frames, *holes), kept)
    return splice(torch.ones(n_frames, CHANNELS), task, 0, lambda z: torch.ones(1, 2, z.shape[1] * HOP))[0]


@pytest.mark.parametrize(
    "holes", [((10, 20),), ((0, 5),), ((25, 30),), ((2, 6), (7, 9), (20, 25)), ((2, 6), (8, 9)), ((0, 30),)]
)
@pytest.mark.parametrize("kept", [BALANCED, keep("conservative"), Keep(0.5, 12, 0.0)])
def test_powers_of_new_and_kept_sum_to_one_in_every_sample(holes: tuple[Span, ...], kept: Keep) -> None:
    new = crossfaded(30, *holes, kept=kept)
    source = Source(torch.zeros(1, 30, CHANNELS), waveform=torch.ones(1, 2, 30 * HOP))
    task = repaint(source, hole(30, *holes), kept)
    old = splice(torch.zeros(30, CHANNELS), task, 0, lambda z: torch.zeros(1, 2, z.shape[1] * HOP))[0]
    torch.testing.assert_close(new**2 + old**2, torch.ones(30 * HOP), atol=1e-5, rtol=0)


def test_a_crossfade_rises_to_a_region_and_falls_behind_it() -> None:
    gain = crossfaded(30, (10, 20))
    before, after = gain[10 * HOP - FADE : 10 * HOP], gain[20 * HOP : 20 * HOP + FADE]
    assert (before.diff() > 0).all()
    assert torch.allclose(before, after.flip(0), atol=1e-6)
    assert 0 < before[0] < 0.01 < 0.99 < before[-1] < 1
    assert not gain[: 10 * HOP - FADE].any()


def test_at_the_ends_of_a_song_there_is_nothing_to_fade_to() -> None:
    assert (crossfaded(30, (0, 30)) == 1).all()
    assert (crossfaded(30, (0, 10))[: 10 * HOP] == 1).all()
    assert (crossfaded(30, (20, 30))[20 * HOP :] == 1).all()


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_regions_closer_than_two_crossfades_share_what_lies_between(gap: int) -> None:
    """A conservative repaint fades over 2400 samples: one frame of 1920 between two regions is too little for both."""
    conservative = keep("conservative")
    assert conservative is not None
    gain = crossfaded(30, (5, 10), (10 + gap, 20), kept=conservative)
    between = gain[10 * HOP : (10 + gap) * HOP]
    room = min(2_400, gap * HOP // 2)
    assert torch.allclose(between, between.flip(0), atol=1e-6)
    assert (between[:room].diff() < 0).all()
    assert between.max() < 1
    assert not between[room : gap * HOP - room].any()


def test_without_a_crossfade_new_and_kept_meet_at_the_sample() -> None:
    gain = crossfaded(30, (10, 20), kept=Keep(0.0, 0, 0.0))
    assert torch.equal(gain, hole(30, (10, 20))[0].repeat_interleave(HOP))


def test_all_of_a_feathered_region_is_new_and_the_crossfade_lies_outside() -> None:
    source = song(100 * HOP)
    task = repaint(source, region(100, 1.6, 2.4, feather_s=0.2))
    ((first, last),) = regions(task, 0)
    assert (first, last) == (40 - 5, 60 + 5)
    audio = spliced(task)
    assert torch.equal(audio[:, first * HOP : last * HOP], generated(100 * HOP)[:, first * HOP : last * HOP])
    assert source.waveform is not None
    assert torch.equal(audio[:, : first * HOP - FADE], source.waveform[0, :, : first * HOP - FADE])


# What is decoded.


@settings(deadline=None, max_examples=80)
@given(spans())
def test_only_regions_and_the_reach_around_them_are_decoded_each_frame_once(case: tuple[int, tuple[Span, ...]]) -> None:
    n_frames, holes = case
    decoder = Decoder()
    splice(counted(n_frames), repaint(song(n_frames * HOP), hole(n_frames, *holes)), 0, decoder)
    margin = DECODE_MARGIN + 1  # the crossfade of 1200 samples lies in one more frame
    needed = {i for a, b in holes for i in range(max(0, a - margin), min(n_frames, b + margin))}
    decoded = [i for start, stop in decoder.spans for i in range(start, stop)]
    assert sorted(decoded) == sorted(needed)


def test_what_is_heard_of_a_decode_lies_deeper_in_it_than_the_vae_reaches() -> None:
    assert DECODE_MARGIN >= VAE_REACH


@pytest.mark.parametrize(
    ("given_spans", "expected"),
    [
        ((), ()),
        (((0, 100),), ((0, 100),)),
        (((40, 50),), ((30, 60),)),
        (((5, 10), (90, 95)), ((0, 20), (80, 100))),
        (((10, 20), (40, 50)), ((0, 60),)),
        (((10, 20), (41, 50)), ((0, 30), (31, 60))),
    ],
)
def test_windows_are_regions_with_their_margins_and_one_where_these_meet(
    given_spans: tuple[Span, ...], expected: tuple[Span, ...]
) -> None:
    assert windows(given_spans, 10, 100) == expected


def test_frames_decoded_in_pieces_sound_as_decoded_at_once() -> None:
    """With a decoder that hears as far as the VAE does."""
    latents = torch.randn(200, CHANNELS, generator=torch.Generator().manual_seed(3))
    kernel = torch.ones(1, 1, 2 * VAE_REACH + 1)

    def decode(z: Tensor) -> Tensor:
        heard = torch.nn.functional.conv1d(z[:, None, :, 0], kernel, padding=VAE_REACH)
        return heard.repeat_interleave(HOP, dim=-1).expand(-1, 2, -1)

    task = repaint(song(200 * HOP), hole(200, (50, 60), (150, 160)))
    whole = decode(latents[None])[0]
    pieces = splice(latents, task, 0, decode)
    for first, last in regions(task, 0):
        torch.testing.assert_close(
            pieces[:, first * HOP : last * HOP], whole[:, first * HOP : last * HOP], atol=1e-4, rtol=0
        )
