"""Laws of the tasks: where sources lie, what is made anew, what the model sees of it, what comes back."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_pack.acestep_core.constants import FRAME_RATE, MIN_FRAMES, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding, n_frames_of
from acestep_pack.acestep_core.pipeline.preserve import BALANCED, Keep, keep
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.tasks import (
    MAX_WINDOW_FRAMES,
    RULES,
    Source,
    Task,
    complete,
    cover,
    extend,
    extract,
    lego,
    repaint,
    stitch,
)
from acestep_pack.acestep_core.song.prompts import TRACKS
from acestep_pack.acestep_core.types import AudioCodes, SongSpec

CHANNELS = 64
TEN_MINUTES = MAX_WINDOW_FRAMES
NO_DEADLINE = settings(deadline=None, max_examples=60)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SILENCE = numbers(0, 1, 40, CHANNELS)


def song(n_frames: int, n_items: int = 1, n_samples: int | None = None) -> Source:
    """A source of random latents, with a random recording where n_samples tells its length."""
    waveform = None if n_samples is None else numbers(2, n_items, 2, n_samples)
    return Source(numbers(1, n_items, n_frames, CHANNELS), waveform=waveform)


def blank(n_frames: int) -> Source:
    """A source as long as one likes that takes no memory."""
    return Source(torch.zeros(1, 1, CHANNELS).expand(1, n_frames, CHANNELS))


def hole(n_frames: int, first: int, last: int) -> Tensor:
    mask = torch.zeros(1, n_frames)
    mask[:, first:last] = 1
    return mask


def everywhere(n_frames: int) -> Tensor:
    return torch.ones(1, n_frames)


# Windows: what the model sees of a canvas.


@st.composite
def holes(draw: st.DrawFn) -> tuple[int, int, int]:
    """A canvas of up to 24 minutes, and where a region of up to ten lies on it."""
    n_frames = draw(st.integers(1, 36_000))
    first = draw(st.integers(0, n_frames - 1))
    last = draw(st.integers(first + 1, min(n_frames, first + TEN_MINUTES)))
    return n_frames, first, last


@NO_DEADLINE
@given(holes())
def test_a_repaint_sees_its_region_and_as_much_around_it_as_ten_minutes_hold(case: tuple[int, int, int]) -> None:
    n_frames, first, last = case
    start, stop = repaint(blank(n_frames), hole(*case)).window
    assert 0 <= start <= first < last <= stop
    assert stop - start == min(max(n_frames, MIN_FRAMES), TEN_MINUTES)
    # Only a canvas shorter than what a model generates is left behind.
    assert stop <= max(n_frames, MIN_FRAMES)
    before, after = first - start, stop - last
    assert before <= after + 1 or stop >= n_frames
    assert after <= before + 1 or start == 0


@NO_DEADLINE
@given(n_frames=st.integers(2, 20_000), right=st.integers(1, 3_000), context=st.integers(1, 4_000))
def test_an_extension_sees_the_context_it_is_given(n_frames: int, right: int, context: int) -> None:
    task = extend(blank(n_frames), 0.0, right / FRAME_RATE, context / FRAME_RATE)
    start, stop = task.window
    seen = min(n_frames, max(context, MIN_FRAMES - right))
    # Seconds become frames by rounding down, so a frame may be lost.
    assert n_frames + right - 1 <= task.n_frames <= n_frames + right
    assert seen - 1 <= n_frames - start <= seen + 1
    assert stop == max(task.n_frames, MIN_FRAMES)


@pytest.mark.parametrize("n_frames", [1, 2, 50, MIN_FRAMES - 1])
@pytest.mark.parametrize(
    "make",
    [
        cover,
        lambda source: repaint(source, hole(source.n_frames, 0, 1)),
        lambda source: lego(source, "drums"),
        lambda source: extract(source, ("drums",)),
        complete,
    ],
)
def test_a_source_too_short_for_a_model_is_seen_with_silence_behind_it_and_comes_back_as_short(
    make: Callable[[Source], Task], n_frames: int
) -> None:
    source = song(n_frames)
    task = make(source)
    assert (task.window, task.n_frames) == ((0, MIN_FRAMES), n_frames)
    seen = task.source_in_window(MIN_FRAMES, SILENCE)
    # From the first frame of silence on, as the official code fills up.
    silence = SILENCE.repeat(1, 4, 1)[:, : MIN_FRAMES - n_frames]
    assert torch.equal(seen, torch.cat((source.latents, silence), dim=1))
    generated = numbers(5, 1, MIN_FRAMES, CHANNELS)
    assert torch.equal(task.assemble(generated, torch.tensor([0])), generated[:, :n_frames])


def test_nothing_behind_a_short_canvas_is_generated_or_blended_into_it() -> None:
    """A mask of 1 there would fade the last frames of the source into what the model makes of silence."""
    mask = repaint(song(100), hole(100, 20, 40)).mask_in_window(MIN_FRAMES)
    assert mask is not None
    assert torch.equal(mask, hole(MIN_FRAMES, 20, 40))


@pytest.mark.parametrize("left", [True, False])
def test_an_extension_of_a_long_song_hears_the_end_that_goes_on(left: bool) -> None:
    task = extend(blank(20_000), 30.0 * left, 30.0 * (not left))
    assert task.window == ((0, 15_000) if left else (5_750, 20_750))
    assert task.n_frames == 20_750


def test_a_stitch_of_long_songs_hears_as_much_of_both() -> None:
    task = stitch(blank(20_000), blank(20_000), 10.0, overlap_s=4.0)
    middle = (20_000 + 20_250) // 2
    assert task.window == (middle - TEN_MINUTES // 2, middle + TEN_MINUTES // 2)


@pytest.mark.parametrize(("context_s", "window"), [(4.0, (900, 1450)), (0.4, (990, 1360)), (60.0, (0, 2350))])
def test_a_stitch_hears_the_context_on_both_sides(context_s: float, window: tuple[int, int]) -> None:
    assert stitch(blank(1_000), blank(1_000), 14.0, context_s=context_s).window == window


# Sources on a canvas.


def test_an_extension_lays_silence_on_both_sides_of_a_source_that_stays() -> None:
    source = song(200, n_items=2)
    task = extend(source, 2.0, 4.0)
    assert task.n_frames == 50 + 200 + 100
    assert task.mask is not None
    assert torch.equal(task.mask, 1 - hole(350, 50, 250))
    seen = task.source_in_window(350, SILENCE)
    assert torch.equal(seen[:, 50:250], source.latents)
    silence = SILENCE.repeat(1, 9, 1)[:, :350].expand(2, -1, -1)
    assert torch.equal(seen[:, :50], silence[:, :50])
    assert torch.equal(seen[:, 250:], silence[:, 250:])


@pytest.mark.parametrize(("n_samples", "n_kept"), [(25 * 1920, 25), (25 * 1920 + 1, 25), (26 * 1920 - 1, 25)])
def test_music_goes_on_where_the_last_full_frame_of_a_recording_ends(n_samples: int, n_kept: int) -> None:
    n_frames = math.ceil(n_samples / SAMPLES_PER_FRAME)
    task = extend(song(n_frames, n_samples=n_samples), 0.0, 1.0)
    assert task.n_frames == n_kept + 25
    assert task.mask is not None
    assert torch.equal(task.mask, hole(n_kept + 25, n_kept, n_kept + 25))


def test_a_lead_in_leaves_the_end_of_a_recording_as_it_is() -> None:
    source = song(26, n_samples=25 * SAMPLES_PER_FRAME + 700)
    task = extend(source, 2.0, 0.0)
    assert task.n_frames == 50 + 26
    assert task.mask is not None
    assert torch.equal(task.mask, hole(76, 0, 50))
    assert torch.equal(task.sources[0].latents, source.latents)


@pytest.mark.parametrize(("bridge", "overlap"), [(0.0, 1.0), (2.0, 0.0), (2.0, 1.0)])
def test_a_stitch_makes_the_bridge_and_its_overlaps_anew(bridge: float, overlap: float) -> None:
    first, second = song(100), Source(numbers(3, 2, 80, CHANNELS))
    task = stitch(first, second, bridge, overlap)
    between, over = int(bridge * 25), int(overlap * 25)
    assert task.n_items == 2
    assert task.n_frames == 180 + between
    assert task.mask is not None
    assert torch.equal(task.mask, hole(task.n_frames, 100 - over, 100 + between + over))
    seen = task.source_in_window(task.n_frames, SILENCE)
    assert torch.equal(seen[:, :100], first.latents.expand(2, -1, -1))
    assert torch.equal(seen[:, 100 + between :], second.latents)


def test_sources_lie_over_each_other_in_their_order() -> None:
    low, high = Source(numbers(1, 1, 20, CHANNELS)), Source(numbers(2, 1, 20, CHANNELS), start=10)
    for sources, owner in (((low, high), high.latents[:, :10]), ((high, low), low.latents[:, 10:])):
        task = Task("complete", sources, 30)
        assert torch.equal(task.source_in_window(30, SILENCE)[:, 10:20], owner)
        assert torch.equal(task.assemble(numbers(5, 1, 128, 64), torch.tensor([0])), numbers(5, 1, 128, 64)[:, :30])


@NO_DEADLINE
@given(st.data())
def test_every_frame_of_a_window_is_a_source_s_or_silence(data: st.DataObject) -> None:
    n_frames = data.draw(st.integers(1, 300), "canvas")
    start = data.draw(st.integers(0, n_frames - 1), "source from")
    length = data.draw(st.integers(1, n_frames - start), "source length")
    first = data.draw(st.integers(0, n_frames - 1), "window from")
    size = data.draw(st.integers(1, n_frames - first), "window length")
    source = Source(numbers(1, 2, length, CHANNELS), start)
    seen = Task("repaint", (source,), n_frames, window=(first, first + size)).source_in_window(size, SILENCE)
    for place in range(size):
        at = first + place - start
        expected = source.latents[:, at] if 0 <= at < length else SILENCE[:, place % 40].expand(2, -1)
        assert torch.equal(seen[:, place], expected)


def test_a_silence_of_lower_precision_does_not_round_a_source() -> None:
    source = song(130)
    assert torch.equal(cover(source).source_in_window(130, SILENCE.half()), source.latents)


def test_a_source_is_left_as_it_was() -> None:
    source = song(150)
    kept = source.latents.clone()
    task = repaint(source, hole(150, 0, 50))
    task.source_in_window(150, SILENCE).zero_()
    task.assemble(numbers(5, 1, 150, CHANNELS), torch.tensor([0])).zero_()
    assert torch.equal(source.latents, kept)


# Rows of a batch.


@pytest.mark.parametrize("n_items", [1, 3])
def test_tracks_of_several_items_are_rows_track_by_track(n_items: int) -> None:
    task = extract(song(130, n_items), ("vocals", "drums", "fx"))
    assert task.n_rows == 3 * n_items
    assert [task.track_of(row) for row in range(task.n_rows)] == [
        track for track in ("vocals", "drums", "fx") for _ in range(n_items)
    ]


def test_all_tracks_can_be_taken_out_of_a_mix_at_once() -> None:
    task = extract(song(130), TRACKS)
    assert task.n_rows == 12
    assert tuple(task.track_of(row) for row in range(12)) == TRACKS


def test_tracks_to_complete_with_are_played_together_in_one_row() -> None:
    task = complete(song(130), ("drums", "bass"))
    assert (task.n_rows, task.track_of(0)) == (1, "drums+bass")
    assert complete(song(130)).track_of(0) == ""


def test_a_canvas_is_put_together_from_the_source_of_its_row() -> None:
    source = song(20_000, n_items=2)
    task = repaint(source, hole(20_000, 100, 200))
    generated, rows = numbers(5, 3, TEN_MINUTES, CHANNELS), torch.tensor([1, 0, 3])
    whole = task.assemble(generated, rows)
    assert torch.equal(whole[:, :TEN_MINUTES], generated)
    assert torch.equal(whole[:, TEN_MINUTES:], source.latents[[1, 0, 1], TEN_MINUTES:])


@pytest.mark.parametrize("n_frames", [127, 129, 1_000])
def test_latents_of_another_length_are_not_put_on_a_canvas(n_frames: int) -> None:
    with pytest.raises(ValueError, match=f"the latent has {n_frames} frames, the cover generates 128"):
        cover(song(50)).assemble(numbers(5, 1, n_frames, CHANNELS), torch.tensor([0]))


# Masks.


@pytest.mark.parametrize("make", [repaint, lambda *given: lego(given[0], "drums", *given[1:])])
@pytest.mark.parametrize("kept", [BALANCED, None])
def test_a_mask_of_zeros_leaves_nothing_to_generate_in_any_mode(
    make: Callable[[Source, Tensor, Keep | None], Task], kept: Keep | None
) -> None:
    assert make(song(130), torch.zeros(1, 130), kept).keeps_all
    assert not make(song(130), hole(130, 129, 130), kept).keeps_all


def test_a_mask_of_zeros_is_legal_on_any_canvas() -> None:
    for n_frames in (1, 127, 20_000):
        task = repaint(blank(n_frames), torch.zeros(1, n_frames))
        assert task.keeps_all
        assert MIN_FRAMES <= task.window_frames <= TEN_MINUTES


@pytest.mark.parametrize("task", [cover(song(130)), extract(song(130), ("fx",)), lego(song(130), "fx")])
def test_a_task_on_a_whole_song_generates_all_of_it_and_keeps_nothing(task: Task) -> None:
    assert task.mask_in_window(130) is None
    assert task.keep is None
    assert not task.keeps_all


def test_regions_of_all_items_are_seen_in_one_window() -> None:
    masks = torch.cat((hole(20_000, 900, 1_000), hole(20_000, 15_000, 15_500)))
    task = repaint(song(20_000, n_items=2), masks)
    start, stop = task.window
    assert (start, stop) == (700, 15_700)
    assert torch.equal(task.mask_in_window(stop - start), masks[:, start:stop])


# What the prompt says, and how firmly the rest is kept.


def test_the_prompt_tells_the_length_of_what_the_model_sees() -> None:
    recorded = song(26, n_samples=48_001)
    assert cover(recorded).duration_s == 48_001 / 48_000
    assert repaint(song(50), hole(50, 0, 9)).duration_s == 2
    assert repaint(blank(20_000), hole(20_000, 0, 9)).duration_s == 600
    assert extend(song(250), 0.0, 10.0).duration_s == 20
    assert stitch(song(250), song(250), 10.0, context_s=4.0).duration_s == 18


@pytest.mark.parametrize(
    ("mode", "strength", "expected"),
    [
        ("conservative", 0.5, Keep(1.0, 25, 0.05)),
        ("balanced", 0.0, Keep(1.0, 25, 0.05)),
        ("balanced", 0.5, BALANCED),
        ("balanced", 1.0, Keep(0.0, 0, 0.0)),
        ("aggressive", 0.5, None),
    ],
)
def test_repaint_modes_keep_what_the_official_ones_keep(mode: str, strength: float, expected: Keep | None) -> None:
    assert keep(mode, strength) == expected


# Beside codes.


def tokens(n_items: int = 1) -> Tokens:
    return Tokens(torch.zeros(n_items, 7, 48), torch.ones(n_items, 7, dtype=torch.bool))


def planned(n_codes: int, n_plans: int = 1) -> AudioCodes:
    return AudioCodes(((1,) * n_codes,) * n_plans)


def encoding(task: Task, codes: AudioCodes) -> Encoding:
    return Encoding(tokens(), tokens(), tokens(), codes=codes, task=task)


def codes_refused() -> list[str]:
    return [name for name, rule in RULES.items() if rule.codes == "refused"]


def test_only_tasks_that_say_what_codes_mean_to_them_take_any() -> None:
    assert codes_refused() == ["lego", "extract", "complete"]


@pytest.mark.parametrize("name", codes_refused())
@pytest.mark.parametrize("n_codes", [26, 99])
def test_codes_never_replace_the_source_of_lego_extract_and_complete(name: str, n_codes: int) -> None:
    """Said before any length is, which mending would not help, and before the text encoder runs."""
    task = Task(name, (song(130),), 130)
    for refused in (encoding, lambda task, codes: n_frames_of(SongSpec(), codes, task)):
        with pytest.raises(ValueError, match=f"{name} takes no audio codes, they would replace its source; disconnect"):
            refused(task, planned(n_codes))


@pytest.mark.parametrize(("n_frames", "n_codes"), [(130, 26), (131, 26), (131, 32), (130, 21), (128, 26), (50, 26)])
def test_codes_may_miss_a_second_of_what_they_are_for(n_frames: int, n_codes: int) -> None:
    task = cover(song(n_frames))
    assert n_frames_of(SongSpec(duration_s=60), planned(n_codes), task) == task.window_frames


@pytest.mark.parametrize("n_codes", [1, 20, 32])
def test_codes_of_another_length_than_the_task_are_refused(n_codes: int) -> None:
    with pytest.raises(ValueError, match=rf"the codes last {n_codes / 5:g} s, the repaint 5\.2 s; make them as long"):
        n_frames_of(SongSpec(), planned(n_codes), repaint(song(130), everywhere(130)))


@pytest.mark.parametrize(("n_items", "n_plans", "total"), [(1, 1, 1), (1, 4, 4), (2, 1, 2), (2, 2, 2), (2, 4, 4)])
def test_plans_and_items_share_one_batch(n_items: int, n_plans: int, total: int) -> None:
    assert encoding(cover(song(130, n_items)), planned(26, n_plans)).n_plans == total


@pytest.mark.parametrize(("n_items", "n_plans"), [(2, 3), (3, 2), (4, 6)])
def test_plans_and_items_that_do_not_pair_up_are_refused(n_items: int, n_plans: int) -> None:
    task, codes = cover(song(130, n_items)), planned(26, n_plans)
    for refused in (encoding, lambda task, codes: n_frames_of(SongSpec(), codes, task)):
        with pytest.raises(ValueError, match=f"{n_plans} plans do not go with {n_items} sources or tracks"):
            refused(task, codes)


# What is refused where it is made.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Source(torch.zeros(1, 64, 130)), r"source latents must be \[items, frames, 64\], got \[1, 64, 130\]"),
        (lambda: Source(torch.zeros(1, 0, 64)), "source latents must be"),
        (lambda: Source(torch.zeros(0, 9, 64)), "source latents must be"),
        (lambda: Source(torch.full((1, 9, 64), math.nan)), "the source holds NaN or infinity; encode it again"),
        (lambda: Source(torch.full((1, 9, 64), -math.inf)), "the source holds NaN or infinity"),
        (lambda: song(25, n_samples=26 * 1920), "the recording has 49920 samples, its latents 25 frames of 1920; cut"),
        (lambda: song(25, n_samples=24 * 1920 - 1), "the recording has 46079 samples, its latents 25 frames of 1920"),
        (
            lambda: Source(numbers(1, 1, 25, 64), waveform=numbers(2, 2, 2, 48_000)),
            r"the recording is \[2, 2, 48000\], its latents need \[1, 2, samples\]",
        ),
        (lambda: Source(numbers(1, 1, 25, 64), waveform=numbers(2, 1, 1, 48_000)), r"the recording is \[1, 1, 48000\]"),
        (lambda: Source(numbers(1, 1, 25, 64), waveform=numbers(2, 2, 48_000)), r"the recording is \[2, 48000\]"),
        (lambda: Task("karaoke", (song(9),), 9), 'task "karaoke" is unknown; it must be one of text2music, cover, '),
        (lambda: Task("repaint", (), 9), 'repaint needs a source: connect a latent to "source"'),
        (lambda: cover(song(9), 1.1), r"cover strength must be 0 to 1, got 1\.1"),
        (lambda: cover(song(9), -0.1), r"cover strength must be 0 to 1, got -0\.1"),
        (lambda: cover(song(9), math.nan), "cover strength must be 0 to 1, got nan"),
        (lambda: cover(song(9), 1, 2), "cover noise strength must be 0 to 1, got 2"),
        (lambda: cover(song(9), 1, -1, hints=False), "cover-nofsq noise strength must be 0 to 1, got -1"),
        (lambda: keep("gentle"), 'repaint mode "gentle" is unknown; choose balanced, conservative, aggressive'),
        (lambda: keep("balanced", 1.5), r"repaint strength must be 0 to 1, got 1\.5"),
        (lambda: repaint(song(9), everywhere(8)), r"the mask covers \[1, 8\] items and frames, the source \[1, 9\]"),
        (lambda: repaint(song(9, 2), torch.ones(3, 9)), r"the mask covers \[3, 9\] .*, the source \[2, 9\]"),
        (lambda: repaint(song(9), torch.ones(9)), r"the mask covers \[9\]"),
        (lambda: repaint(song(9), 2 * everywhere(9)), r"the mask must hold numbers from 0 \(keep\) to 1 \(generate\)"),
        (lambda: repaint(song(9), -everywhere(9)), "the mask must hold numbers"),
        (lambda: repaint(song(9), math.nan * everywhere(9)), "the mask must hold numbers"),
        (lambda: lego(song(9), "drums", everywhere(10)), r"the mask covers \[1, 10\]"),
        (lambda: lego(song(9), "kazoo"), 'track "kazoo" is unknown; choose from woodwinds'),
        (lambda: extract(song(9), ("drums", "VOCALS")), 'track "VOCALS" is unknown'),
        (lambda: extract(song(9), ()), "choose at least one track to extract"),
        (lambda: complete(song(9), ("kazoo",)), 'track "kazoo" is unknown'),
        (lambda: extend(song(9), 0, 0), 'there is nothing to extend: set "left" or "right" above 0 s'),
        (lambda: extend(song(9), -1, 5), '"left" must be 0 s or more, got -1 s'),
        (lambda: extend(song(9), 0, 5, -1), '"context" must be 0 s or more, got -1 s'),
        (lambda: stitch(song(9), song(9), 0, 0), 'there is nothing to stitch with: set "bridge" or "overlap"'),
        (lambda: stitch(song(50), song(25), 1, 1), "an overlap of 1 s leaves nothing of a source; make it shorter"),
        (lambda: stitch(song(50, 2), song(50, 3), 1), "the sources have 2 and 3 items; use as many of each"),
        (lambda: cover(blank(15_001)), r"cover would generate over 600\.04 s at once, at most 600 s fit"),
        (lambda: extend(blank(15_000), 1, 1), "extend would generate over 602 s at once"),
        (lambda: repaint(blank(15_001), everywhere(15_001)), r"repaint would generate over 600\.04 s at once"),
        (
            lambda: repaint(blank(20_000), hole(20_000, 0, 9) + hole(20_000, 19_000, 19_009)),
            r"repaint would generate over 760\.36 s at once",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_region_is_a_mask_that_a_repaint_takes() -> None:
    task = repaint(song(250), region(250, 2.0, 4.0, feather_s=0.4))
    seen = task.mask_in_window(250)
    assert seen is not None
    assert torch.equal(seen == 1, hole(250, 50, 100) == 1)
    assert 0 < seen[0, 49] < 1
