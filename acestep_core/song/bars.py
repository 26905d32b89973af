"""Converts between seconds and bars of a song.

Bars are counted from the start of the music: 0 is the start of the first, 2.5 the middle of the third. The tempo is
constant. A beat is what the time signature counts, in 6/8 an eighth: the official texts do not say so, but the
official planner gave 167 bpm to a slow ballad in "6". A song without a time signature has four beats in a bar.
Source: ace-step/ACE-Step-1.5, `docs/en/INFERENCE.md` (2, 3, 4, 6 stand for 2/4, 3/4, 4/4, 6/8).
"""

from __future__ import annotations

from ..types import SongSpec

UNITS = ("seconds", "bars")
DEFAULT_BEATS = 4


def bar_s(song: SongSpec) -> float:
    """Return the length of a bar in seconds.

    Raises ValueError for a song without a tempo.
    """
    if song.bpm is None:
        raise ValueError("this song has no tempo; set bpm or use seconds")
    return int(song.time_signature or DEFAULT_BEATS) * 60 / song.bpm


def to_seconds(bars: float, song: SongSpec) -> float:
    """Return the position of `bars` in seconds. Raises ValueError as bar_s does."""
    return bars * bar_s(song)


def to_bars(seconds: float, song: SongSpec) -> float:
    """Return the position of `seconds` in bars. Raises ValueError as bar_s does."""
    return seconds / bar_s(song)


def in_seconds(value: float, unit: str, song: SongSpec | None) -> float:
    """Return a value in seconds; unit is one of UNITS, and bars need a song.

    Raises ValueError for bars without a song or without a tempo, and for another unit.
    """
    if unit not in UNITS:
        raise ValueError(f'unit "{unit}" is unknown; choose {" or ".join(UNITS)}')
    if unit == "seconds":
        return value
    if song is None:
        raise ValueError('bars need the tempo of a song: connect one to "song" or use seconds')
    return to_seconds(value, song)
