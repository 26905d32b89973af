"""Lines, words and sections with their times, and the LRC and SRT made of them, read back by small parsers."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

import vocabulary
from acestep_pack.acestep_core.scoring.alignment import Path, consensus, dtw_path, energy
from acestep_pack.acestep_core.scoring.attention import lyric_rows
from acestep_pack.acestep_core.scoring.lyric_score import score_lyrics, score_planned_lyrics
from acestep_pack.acestep_core.scoring.lyrics import Lyrics, TimedLine, TimedWord, timed_lines
from acestep_pack.acestep_core.scoring.score import Score
from acestep_pack.acestep_core.scoring.subtitles import lrc, srt, word_lrc
from acestep_pack.acestep_core.song.tokens import lyric_ids, pieces
from acestep_pack.acestep_core.types import SongSpec

SONG = Lyrics(("[", "Verse", "]\n", "Walk", "ing", " far", "\n", "\n\n", "Home", ".", "\n"))
FRAMES_EACH = 5


def sung(lyrics: Lyrics, heard: tuple[float, ...] | None = None) -> tuple[TimedLine, ...]:
    """Return the lines of lyrics whose tokens last FRAMES_EACH frames of 0.1 s each, heard so clearly."""
    n = len(lyrics.pieces)
    matrix = torch.zeros(n, n * FRAMES_EACH)
    for token in range(n):
        matrix[token, token * FRAMES_EACH : (token + 1) * FRAMES_EACH] = 1.0 if heard is None else heard[token]
    frames = torch.arange(n * FRAMES_EACH)
    path = Path((frames // FRAMES_EACH).numpy(), frames.numpy())
    return timed_lines(lyrics, path, matrix, n * FRAMES_EACH / 10)


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.tokenizer()


# What lyrics are.


def test_lines_end_with_their_line_break_and_blank_ones_are_dropped() -> None:
    assert [(line.text, line.tokens) for line in SONG.lines] == [
        ("[Verse]", range(0, 3)),
        ("Walking far", range(3, 7)),
        ("Home.", range(8, 11)),
    ]


def test_tags_are_not_sung_and_line_breaks_are() -> None:
    assert SONG.sung == (False, False, False, *[True] * 8)
    assert Lyrics(("[", "a", "][", "b", " [c", "] d", " e")).sung == (*[False] * 3, True, False, False, True)


@pytest.mark.parametrize("pieces", [(), ("\n", " "), ("[", "Instrumental", "]"), ("[Intro", "]\n", "[Solo", "]\n\n")])
def test_a_song_without_words_has_nothing_to_align_and_that_is_no_error(pieces: tuple[str, ...]) -> None:
    lyrics, attention = Lyrics(pieces), torch.rand(2, len(pieces), 9)
    assert lyrics.is_wordless
    found = score_lyrics(attention, lyrics, 1.0)
    assert not found.is_aligned
    assert found.score == score_planned_lyrics(attention, lyrics) == Score()
    assert lrc(found.score.lines) == srt(found.score.lines) == ""


def test_words_begin_behind_spaces_and_in_chinese_and_japanese_everywhere() -> None:
    def words(*pieces: str) -> list[str]:
        return [word.text for word in Lyrics(pieces).words(range(len(pieces)))]

    assert words("Walk", "ing", " far", ",", " don", "'t", "\n") == ["Walking", "far,", "don't"]
    assert words("我", "爱", "，", "你", "\n") == ["我", "爱，", "你"]
    assert words("사", "랑", " 해") == ["사랑", "해"]
    assert words("one", " ", "two") == ["one", "two"]


def test_a_character_of_several_tokens_starts_with_the_first() -> None:
    assert [word.tokens for word in Lyrics(("a", "", "", "好", " b")).words(range(5))] == [
        range(0, 1),
        range(1, 4),
        range(4, 5),
    ]


@pytest.mark.parametrize(
    "lyrics", ["Hello wörld\n", "[Verse]\n我爱你🙂\n", "Привет, мир\n\n한국어 노래", "\n first", "a\r\nb"]
)
def test_pieces_of_lyrics_joined_are_the_lyrics(tokenizer, lyrics: str) -> None:
    ids = lyric_ids(tokenizer, SongSpec(lyrics=lyrics, language="unknown"))
    rows = lyric_rows(ids)
    tokens = ids.tokens.ids[0].tolist()
    found = pieces(tokenizer, tokens)
    assert tokenizer.decode(tokens[rows.start : rows.stop]) == "".join(found[rows.start : rows.stop])
    assert "".join(found[rows.start : rows.stop]).strip() == lyrics.strip()


@pytest.mark.parametrize("language", ["en", "yue", None])
def test_lyric_rows_leave_out_the_header_and_the_end_of_the_text(tokenizer, language: str | None) -> None:
    ids = lyric_ids(tokenizer, SongSpec(lyrics="Walking far", language=language))
    rows = lyric_rows(ids)
    assert tokenizer.decode(ids.tokens.ids[0, rows.start : rows.stop].tolist()) == "Walking far"
    assert not lyric_rows(lyric_ids(tokenizer, SongSpec(language=language)))


# Times.


def test_lines_and_words_last_from_their_first_frame_to_the_end_of_their_last() -> None:
    tag, walking, home = sung(SONG)
    assert (tag.start_s, tag.end_s, tag.words, tag.is_tag) == (0.0, pytest.approx(1.5), (), True)
    assert (walking.start_s, walking.end_s) == (pytest.approx(1.5), pytest.approx(3.5))
    assert [word.text for word in walking.words] == ["Walking", "far"]
    assert walking.words[1].start_s == pytest.approx(2.5)
    assert walking.words[1].end_s == pytest.approx(3.0)
    assert (home.start_s, home.end_s) == (pytest.approx(4.0), pytest.approx(5.5))


def test_lines_know_their_section() -> None:
    assert [line.section for line in sung(SONG)] == ["Verse"] * 3
    assert [line.section for line in sung(Lyrics(("Oh\n", "[Chorus]\n", "Hey")))] == ["", "Chorus", "Chorus"]


def test_confidence_is_what_is_heard_of_the_tokens_that_show() -> None:
    heard = (0.5, 0.5, 0.5, 0.9, 0.7, 0.8, 0.0, 0.0, 0.1, 0.3, 0.0)
    assert [line.confidence for line in sung(SONG, heard)] == pytest.approx([0.5, 0.8, 0.2])


def test_a_solo_before_a_line_does_not_make_it_less_sure() -> None:
    """The path must spend the solo's frames on some token."""
    attention = torch.full((3, 4, 120), 0.01)
    for token, frames in enumerate((range(0, 10), range(10, 20), range(100, 110), range(110, 120))):
        attention[:, token, frames] = 0.9
    lines = score_lyrics(attention, Lyrics(("Oh", " yes\n", "Hey", " you\n")), 9.6).score.lines
    assert [line.confidence for line in lines] == pytest.approx([1.0, 1.0])


def test_a_line_that_is_not_sung_is_less_sure_than_the_others() -> None:
    attention = torch.full((3, 6, 60), 0.02)
    for token in (0, 1, 4, 5):
        attention[:, token, 10 * token : 10 * token + 10] = 0.9
    lines = score_lyrics(attention, Lyrics(("Oh", " yes\n", "not", " sung\n", "Hey", " you\n")), 4.8).score.lines
    assert lines[1].confidence < 0.1 < 0.9 < min(lines[0].confidence, lines[2].confidence)


# Files.


def line(text: str, start_s: float, end_s: float, *words: TimedWord) -> TimedLine:
    return TimedLine(text, start_s, end_s, 1.0, words)


def parse_lrc(text: str) -> list[tuple[float, str]]:
    """Return (seconds, text) of each line, as players read them."""
    found = []
    for row in text.split("\n"):
        match = re.fullmatch(r"\[(\d\d+):([0-5]\d)\.(\d\d)\](.*)", row)
        assert match, row
        found.append((int(match[1]) * 60 + int(match[2]) + int(match[3]) / 100, match[4]))
    return found


def parse_words(text: str) -> list[tuple[float, str]]:
    """Return (seconds, word) of the words of an enhanced line; the last has no text and tells the end."""
    found = re.findall(r"<(\d\d+):([0-5]\d)\.(\d\d)>([^<]*)", text)
    return [(int(m) * 60 + int(s) + int(h) / 100, word.strip()) for m, s, h, word in found]


def parse_srt(text: str) -> list[tuple[int, float, float, str]]:
    """Return (number, start, end, text) of each subtitle."""
    time = r"(\d\d):([0-5]\d):([0-5]\d),(\d{3})"
    found = []
    for block in text.strip("\n").split("\n\n"):
        match = re.fullmatch(rf"(\d+)\n{time} --> {time}\n(.+)", block)
        assert match, block
        numbers = [int(group) for group in match.groups()[:-1]]
        start, end = (h * 3600 + m * 60 + s + ms / 1000 for h, m, s, ms in (numbers[1:5], numbers[5:9]))
        found.append((numbers[0], start, end, match.groups()[-1]))
    return found


@pytest.mark.parametrize(
    ("time_s", "written"), [(0.0, "00:00.00"), (59.994, "00:59.99"), (59.996, "01:00.00"), (600.5, "10:00.50")]
)
def test_a_minute_is_never_written_as_sixty_seconds(time_s: float, written: str) -> None:
    assert lrc([line("la", time_s, time_s)]) == f"[{written}]la"


def test_a_rounded_second_is_carried_in_srt_too() -> None:
    assert srt([line("la", 59.9996, 3599.9996)]) == "1\n00:01:00,000 --> 01:00:00,000\nla\n"


def test_lrc_reads_back_as_the_lines() -> None:
    lines = sung(SONG)
    assert parse_lrc(lrc(lines)) == [(pytest.approx(one.start_s, abs=0.005), one.text) for one in lines]


def test_enhanced_lrc_reads_back_as_lines_and_words() -> None:
    lines = sung(SONG)
    for (start, text), one in zip(parse_lrc(word_lrc(lines)), lines, strict=True):
        assert start == pytest.approx(one.start_s, abs=0.005)
        if one.is_tag:
            assert text == one.text
        else:
            expected = [(word.start_s, word.text) for word in one.words] + [(one.end_s, "")]
            assert parse_words(text) == [(pytest.approx(time, abs=0.005), word) for time, word in expected]


def test_srt_reads_back_as_the_sung_lines_one_after_another() -> None:
    lines = [one for one in sung(SONG) if not one.is_tag]
    found = parse_srt(srt(sung(SONG)))
    assert [(number, text) for number, _, _, text in found] == [(1, "Walking far"), (2, "Home.")]
    assert [(start, end) for _, start, end, _ in found] == [
        (pytest.approx(one.start_s, abs=5e-4), pytest.approx(one.end_s, abs=5e-4)) for one in lines
    ]
    assert all(earlier[2] <= later[1] for earlier, later in pairwise(found))


def test_a_line_of_one_frame_lasts_some_time() -> None:
    attention = torch.eye(4)[None] * 0.9
    lines = timed_lines(
        Lyrics(("a\n", "b\n", "c\n", "d\n")), dtw_path(consensus(attention)), energy(attention), 4 * 0.08
    )
    assert all(one.end_s - one.start_s == pytest.approx(0.08) for one in lines)
