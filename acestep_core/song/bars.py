"""Seconds and bars of a song, for whoever edits in bars.

Bars are counted from the start of the music: 0 is where the first begins, 2.5 the middle of the third. The
tempo never changes. The bpm counts the beats that the time signature counts, in 6/8 the six eighths; the
official texts leave it open, but the official planner has given a slow ballad in "6" 167 bpm. A song without a
time signature has four beats in a bar.
Source: ace-step/ACE-Step-1.5, `docs/en/INFERENCE.md` (2, 3, 4, 6 stand for 2/4, 3/4, 4/4, 6/8).
"""

from __future__ import annotations

from ..types import SongSpec

UNITS = ("seconds", "bars")
DEFAULT_BEATS = 4


def bar_s(song: SongSpec) -> float:
    """Return how long a bar of a song lasts.

    Raises ValueError for a song without a tempo.
    """
    if song.bpm is None:
        raise ValueError("this song has no tempo; set bpm or use seconds")
    return int(song.time_signature or DEFAULT_BEATS) * 60 / song.bpm


def to_seconds(bars: float, song: SongSpec) -> float:
    """Return where a song is after so many bars, in seconds. Raises ValueError as bar_s does."""
    return bars * bar_s(song)


def to_bars(seconds: float, song: SongSpec) -> float:
    """Return after how many bars a song is at so many seconds. Raises ValueError as bar_s does."""
    return seconds / bar_s(song)


def in_seconds(value: float, unit: str, song: SongSpec | None) -> float:
    """Return a value given in one of UNITS in seconds; bars need the song they are counted in.

    Raises ValueError for bars without a song or without a tempo, and for another unit.
    """
    if unit not in UNITS:
        raise ValueError(f'unit "{unit}" is unknown; choose {" or ".join(UNITS)}')
    if unit == "seconds":
        return value
    if song is None:
        raise ValueError('bars need the tempo of a song: connect one to "song" or use seconds')
    return to_seconds(value, song)
