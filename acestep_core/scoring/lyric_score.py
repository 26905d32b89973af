"""What attention tells of a take: how well it follows its lyrics, and when each line is sung."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .alignment import Path, consensus, energy, warp
from .lyrics import Lyrics, timed_lines
from .metrics import measure
from .score import NamedScore, Score

# The official names: DiT lyrics alignment score, LLM lyrics alignment score.
LYRICS = "lyrics"  # attention at the take's own noise level
LYRICS_PLANNED = "lyrics_planned"  # attention in pure noise: what codes and text alone foretell


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
