"""The lines, words and sections of lyrics, with the times they are sung at and a confidence.

Lyrics come as pieces, the text of each token. A line ends with the token that holds its line break; a line in square
brackets is a tag and names the section that follows. `subtitles` writes timed lines as LRC and SRT.
Source: ace-step/ACE-Step-1.5, `acestep/core/scoring/dit_alignment.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .alignment import Path

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TimedWord:
    """A word and when it is sung, in seconds."""

    text: str
    start_s: float
    end_s: float

    def later(self, by_s: float) -> TimedWord:
        """Return the word by_s seconds later."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


@dataclass(frozen=True)
class TimedLine:
    """A line and when it is sung, in seconds."""

    text: str
    start_s: float
    end_s: float
    confidence: float  # 0 to 1
    words: tuple[TimedWord, ...] = ()  # none for a tag
    section: str = ""  # the text of the last tag, such as "Chorus"
    is_tag: bool = False  # whether the line itself is a tag

    def later(self, by_s: float) -> TimedLine:
        """Return the line and its words by_s seconds later."""
        words = tuple(word.later(by_s) for word in self.words)
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s, words=words)


@dataclass(frozen=True)
class TextSpan:
    """A line or a word, and the tokens it is made of."""

    text: str
    tokens: range


@dataclass(frozen=True)
class Lyrics:
    """The lyrics of a song as the text of each token, without header and end of text."""

    pieces: tuple[str, ...]

    @cached_property
    def sung(self) -> tuple[bool, ...]:
        """Return for each token whether it is outside tags. A line break counts as sung, as in the official code."""
        sung, in_tag = [], False
        for piece in self.pieces:
            in_tag = in_tag or "[" in piece
            sung.append(not in_tag)
            in_tag = in_tag and "]" not in piece
        return tuple(sung)

    @property
    def is_wordless(self) -> bool:
        """Tell whether there is nothing to align: no lyrics, or only tags such as [Instrumental]."""
        return not any(
            sung and any(map(str.isalnum, piece)) for sung, piece in zip(self.sung, self.pieces, strict=True)
        )

    @cached_property
    def lines(self) -> tuple[TextSpan, ...]:
        """Return the lines that are not blank, each with the token that holds its line break."""
        ends = [index + 1 for index, piece in enumerate(self.pieces) if "\n" in piece]
        bounds = [0, *ends, len(self.pieces)]
        spans = (range(start, end) for start, end in pairwise(bounds))
        lines = (TextSpan("".join(self.pieces[t.start : t.stop]).strip(), t) for t in spans)
        return tuple(line for line in lines if line.text)

    def words(self, tokens: range) -> tuple[TextSpan, ...]:
        """Return the words among tokens. A word begins after a space; in scripts without spaces every token is one."""
        words: list[TextSpan] = []
        before = " "
        for start, piece, index in _whole_pieces(self.pieces, tokens):
            text = piece.strip()
            if text and (not words or _parts(before, piece)):
                words.append(TextSpan(text, range(start, index + 1)))
            elif text:
                words[-1] = TextSpan(words[-1].text + text, range(words[-1].tokens.start, index + 1))
            before = piece
        return tuple(words)


def timed_lines(lyrics: Lyrics, path: Path, energy: Tensor, duration_s: float) -> tuple[TimedLine, ...]:
    """Return the lines with the times at which a path passes their tokens, and their confidence from energy [N, F].

    A line ends at the end of its last frame. The official code takes that frame's beginning, which gives a line of one
    frame no duration.
    """
    first, last = path.spans()
    frame_s = duration_s / energy.shape[1]
    starts, ends = first * frame_s, (last + 1) * frame_s
    # A token's peak, not its mean: the path gives the frames of a solo to some token, which must not count against it.
    peaks = np.maximum.reduceat(energy.double().numpy()[path.tokens, path.frames], _changes(path.tokens))
    timed, section = [], ""
    for line in lyrics.lines:
        is_tag = line.text.startswith("[") and line.text.endswith("]")
        section = line.text[1:-1].strip() if is_tag else section
        words = () if is_tag else lyrics.words(line.tokens)
        visible = [token for token in line.tokens if lyrics.pieces[token].strip()]
        timed.append(
            TimedLine(
                text=line.text,
                start_s=float(starts[line.tokens.start]),
                end_s=float(ends[line.tokens[-1]]),
                confidence=float(peaks[visible].mean()),
                words=tuple(_timed_word(word, starts, ends) for word in words),
                section=section,
                is_tag=is_tag,
            )
        )
    return tuple(timed)


def _timed_word(word: TextSpan, starts: Floats, ends: Floats) -> TimedWord:
    return TimedWord(word.text, float(starts[word.tokens.start]), float(ends[word.tokens[-1]]))


def _changes(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index in a path where each token begins."""
    return np.flatnonzero(np.diff(tokens, prepend=-1))


def _whole_pieces(pieces: Sequence[str], tokens: range) -> Iterator[tuple[int, str, int]]:
    """Yield (first token, text, last token) of pieces with text; empty pieces belong to the next one."""
    start = tokens.start
    for index in tokens:
        if pieces[index]:
            yield start, pieces[index], index
            start = index + 1


def _parts(before: str, piece: str) -> bool:
    """Tell whether a word ends between two pieces."""
    if before[-1].isspace() or piece[0].isspace() or _stands_alone(piece[0]):
        return True
    return piece[0].isalnum() and _stands_alone(before[-1])


def _stands_alone(character: str) -> bool:
    """Tell whether a character's script puts no spaces between words, as Chinese and Japanese do."""
    wide = unicodedata.east_asian_width(character) in "WF"
    return wide and character.isalnum() and not unicodedata.name(character, "").startswith("HANGUL")
