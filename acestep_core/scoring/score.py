"""What is known of how good a take is: named scores, and its timed lyrics.

A Score starts empty and grows as scorers add to it. `score_lyrics` adds what attention tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from .alignment import Path, consensus, energy, warp
from .lyrics import Lyrics, TimedLine, timed_lines
from .metrics import measure

# The official names: DiT lyrics alignment score, LLM lyrics alignment score.
LYRICS = "lyrics"  # attention at the take's own noise level
LYRICS_PLANNED = "lyrics_planned"  # attention in pure noise: what codes and text alone foretell


@dataclass(frozen=True)
class NamedScore:
    """One number that tells how good a take is; more is better."""

    name: str
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f'score "{self.name}" must be a number, got {self.value}; score the take again')


@dataclass(frozen=True)
class Score:
    """The named scores of a take, and its lines with their times.

    lines is empty for a take that was not scored by its lyrics, and for one that has nothing to align.
    """

    named: tuple[NamedScore, ...] = ()
    lines: tuple[TimedLine, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.named):
            raise ValueError(f"each score of a take needs a name of its own, got {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the scores, in the order they were made."""
        return tuple(score.name for score in self.named)

    def value(self, name: str) -> float | None:
        """Return a score, None where the take has none of that name."""
        return next((score.value for score in self.named if score.name == name), None)

    def extended(self, other: Score) -> Score:
        """Return this score with another's named scores added, or in place of equal names, and its lines if any."""
        kept = tuple(score for score in self.named if score.name not in other.names)
        return Score(kept + other.named, other.lines or self.lines)

    def later(self, by_s: float) -> Score:
        """Return this score with its lines by_s seconds later, as where a take is part of a longer one."""
        return replace(self, lines=tuple(line.later(by_s) for line in self.lines))


@dataclass(frozen=True, eq=False)
class LyricScore:
    """How a take follows its lyrics. energy [N, F] and the path through it are for a picture of it.

    Where there is nothing to align the score is empty, energy has no cells, and path is None.
    """

    score: Score
    energy: Tensor
    path: Path | None

    @property
    def is_aligned(self) -> bool:
        """Tell whether there was anything to align."""
        return self.path is not None


def score_lyrics(attention: Tensor, lyrics: Lyrics, duration_s: float) -> LyricScore:
    """Return how one take's attention [H, N, F] follows its lyrics of N tokens.

    Lines are timed along the path that frames and tokens agree on, as the official timestamps are; the numbers
    are those of the path through the energy, as the official score's.

    Raises: ValueError for attention of another number of tokens.
    """
    if attention.shape[1] != len(lyrics.pieces):
        raise ValueError(
            f"the lyrics have {len(lyrics.pieces)} tokens, the attention {attention.shape[1]}; score them with "
            "the conditioning they were encoded in"
        )
    if lyrics.is_wordless:
        return LyricScore(Score(), attention.new_zeros(0, attention.shape[2]), None)
    seen = energy(attention)
    timing = warp(consensus(attention))
    metrics = measure(seen, warp(seen.square()), lyrics.sung)
    named = (
        NamedScore(LYRICS, metrics.score),
        NamedScore("lyrics_coverage", metrics.coverage),
        NamedScore("lyrics_monotonicity", metrics.monotonicity),
        NamedScore("lyrics_confidence", metrics.confidence),
    )
    return LyricScore(Score(named, timed_lines(lyrics, timing, seen, duration_s)), seen, timing)


def score_planned_lyrics(attention: Tensor, lyrics: Lyrics) -> Score:
    """Return what attention [H, N, F] in pure noise foretells: one number, no times."""
    if lyrics.is_wordless:
        return Score()
    seen = energy(attention)
    return Score((NamedScore(LYRICS_PLANNED, measure(seen, warp(seen.square()), lyrics.sung).score),))
