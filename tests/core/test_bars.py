"""Bars of a song in seconds and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.constants import MAX_BPM, MIN_BPM, TIME_SIGNATURES
from acestep_pack.acestep_core.song.bars import bar_s, in_seconds, to_bars, to_seconds
from acestep_pack.acestep_core.types import SongSpec

SONGS = st.builds(
    SongSpec, bpm=st.integers(MIN_BPM, MAX_BPM), time_signature=st.none() | st.sampled_from(TIME_SIGNATURES)
)


@pytest.mark.parametrize(
    ("bpm", "time_signature", "seconds"),
    [(120, "4", 2.0), (120, "3", 1.5), (120, "2", 1.0), (180, "6", 2.0), (60, None, 4.0), (300, "2", 0.4)],
)
def test_a_bar_is_as_many_beats_as_the_time_signature_says(
    bpm: int, time_signature: str | None, seconds: float
) -> None:
    assert bar_s(SongSpec(bpm=bpm, time_signature=time_signature)) == pytest.approx(seconds)


@given(song=SONGS, bars=st.floats(0, 1_000))
def test_bars_in_seconds_are_the_same_bars(song: SongSpec, bars: float) -> None:
    assert to_bars(to_seconds(bars, song), song) == pytest.approx(bars)


@given(song=SONGS, seconds=st.floats(0, 600))
def test_seconds_in_bars_are_the_same_seconds(song: SongSpec, seconds: float) -> None:
    assert to_seconds(to_bars(seconds, song), song) == pytest.approx(seconds)


@given(song=SONGS, bars=st.floats(0, 500))
def test_twice_the_bars_last_twice_as_long(song: SongSpec, bars: float) -> None:
    assert to_seconds(2 * bars, song) == pytest.approx(2 * to_seconds(bars, song))


def test_bars_begin_at_zero() -> None:
    song = SongSpec(bpm=90, time_signature="3")
    assert [to_seconds(bars, song) for bars in (0, 1, 2.5)] == [0, 2, 5]


def test_a_unit_is_read_as_it_says() -> None:
    song = SongSpec(bpm=120)
    assert in_seconds(8, "bars", song) == 16
    assert in_seconds(8, "seconds", song) == in_seconds(8, "seconds", None) == 8


@pytest.mark.parametrize("convert", [to_seconds, to_bars])
def test_a_song_without_a_tempo_has_no_bars(convert) -> None:
    with pytest.raises(ValueError, match=r"^this song has no tempo; set bpm or use seconds$"):
        convert(4, SongSpec(time_signature="4"))


@pytest.mark.parametrize(
    ("unit", "song", "sentence"),
    [
        ("bars", None, 'bars need the tempo of a song: connect one to "song" or use seconds'),
        ("bars", SongSpec(), "this song has no tempo; set bpm or use seconds"),
        ("beats", SongSpec(bpm=90), 'unit "beats" is unknown; choose seconds or bars'),
    ],
)
def test_what_cannot_be_counted_is_refused(unit: str, song: SongSpec | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        in_seconds(4, unit, song)
