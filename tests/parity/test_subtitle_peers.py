"""Timed lyrics as other people's parsers read them: pylrc and lrcparser for LRC, srt for SRT."""

from datetime import timedelta

import lrcparser
import pylrc
import pytest
import srt as srt_parser

from acestep_pack.acestep_core.scoring.lyrics import TimedLine, TimedWord
from acestep_pack.acestep_core.scoring.subtitles import lrc, srt, word_lrc

pytestmark = pytest.mark.parity

LINES = (
    TimedLine("[Verse 1]", 0.0, 0.4, 0.9, is_tag=True),
    TimedLine(
        "Regen auf dem Dach",
        59.996,
        63.5,
        0.8,
        (
            TimedWord("Regen", 59.996, 61.0),
            TimedWord("auf", 61.0, 61.4),
            TimedWord("dem", 61.4, 61.8),
            TimedWord("Dach", 61.8, 63.5),
        ),
        "Verse 1",
    ),
    TimedLine("雨が降る", 64.04, 599.96, 0.3, (TimedWord("雨が降る", 64.04, 599.96),), "Verse 1"),
)


def test_lrc_is_read_line_by_line_at_its_times() -> None:
    found = pylrc.parse(lrc(LINES))
    assert [(line.time, line.text) for line in found] == [
        (pytest.approx(line.start_s, abs=0.0051), line.text) for line in LINES
    ]


def test_enhanced_lrc_is_read_word_by_word_at_its_times() -> None:
    sung = [line for line in LINES if line.words]
    found = lrcparser.LrcParser.parse(word_lrc(sung))["lrc_lines"]
    for read, line in zip(found, sung, strict=True):
        *words, end = [(seconds(part.time), part.text.strip()) for part in read.text]
        assert words == [(pytest.approx(word.start_s, abs=0.0051), word.text) for word in line.words]
        assert end == (pytest.approx(line.end_s, abs=0.0051), "")


def test_srt_is_read_with_its_times_and_without_tags() -> None:
    found = list(srt_parser.parse(srt(LINES)))
    sung = [line for line in LINES if not line.is_tag]
    assert [each.content for each in found] == [line.text for line in sung]
    for read, line in zip(found, sung, strict=True):
        assert abs(read.start - timedelta(seconds=line.start_s)) <= timedelta(milliseconds=1)
        assert abs(read.end - timedelta(seconds=line.end_s)) <= timedelta(milliseconds=1)


def seconds(time: lrcparser.LrcTime) -> float:
    return time.minutes * 60 + time.seconds + time.microseconds / 1e6
