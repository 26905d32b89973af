"""Writes timed lyrics as LRC, as LRC with a time for every word, and as SRT.

A time is rounded once, to whole hundredths or thousandths, so no line begins at 60 seconds as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence

from .lyrics import TimedLine


def lrc(lines: Sequence[TimedLine]) -> str:
    """Return lines as LRC, including tags, as the official code does."""
    return "\n".join(f"[{_minutes(line.start_s)}]{line.text}" for line in lines)


def word_lrc(lines: Sequence[TimedLine]) -> str:
    """Return lines as enhanced LRC: <mm:ss.xx> before every word, and one where the line ends."""
    return "\n".join(_word_line(line) for line in lines)


def srt(lines: Sequence[TimedLine]) -> str:
    """Return lines as SRT subtitles, without tags: viewers want to read what is sung."""
    sung = [line for line in lines if not line.is_tag]
    return "\n".join(
        f"{number}\n{_hours(line.start_s)} --> {_hours(line.end_s)}\n{line.text}\n"
        for number, line in enumerate(sung, start=1)
    )


def _word_line(line: TimedLine) -> str:
    start = f"[{_minutes(line.start_s)}]"
    if not line.words:
        return start + line.text
    words = " ".join(f"<{_minutes(word.start_s)}>{word.text}" for word in line.words)
    return f"{start}{words} <{_minutes(line.end_s)}>"


def _minutes(time_s: float) -> str:
    """Return mm:ss.xx."""
    seconds, hundredths = divmod(round(time_s * 100), 100)
    return f"{seconds // 60:02d}:{seconds % 60:02d}.{hundredths:02d}"


def _hours(time_s: float) -> str:
    """Return hh:mm:ss,mmm."""
    seconds, thousandths = divmod(round(time_s * 1000), 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{thousandths:03d}"
