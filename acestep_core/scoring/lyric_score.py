"""From a take's attention to its lyric score and timed lines."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .alignment import Path, consensus, dtw_path, energy
from .lyrics import Lyrics, timed_lines
from .metrics import measure
from .score import NamedScore, Score

# The official names: DiT lyrics alignment score, LLM lyrics alignment score.
LYRICS = "lyrics"  # attention at the take's own noise level
LYRICS_PLANNED = "lyrics_planned"  # attention in pure noise: codes and text alone


@dataclass(frozen=True, eq=False)
class LyricScore:
    """How well a take follows its lyrics, with what a picture of it needs."""

    score: Score  # empty where there is nothing to align
    energy: Tensor  # [N tokens, F frames]; no rows where there is nothing to align
    path: Path | None  # the alignment that timed the lines; None where there is nothing to align

    @property
    def is_aligned(self) -> bool:
        """Tell whether there was anything to align."""
        return self.path is not None


def score_lyrics(attention: Tensor, lyrics: Lyrics, duration_s: float) -> LyricScore:
    """Return how one take's attention [H, N, F] follows its lyrics of N tokens.

    Two paths, as in the official code: lines are timed along the path through the consensus, the metrics are
    measured along the path through the energy.

    Raises: ValueError if the attention has another number of tokens.
    """
    if attention.shape[1] != len(lyrics.pieces):
        raise ValueError(
            f"the lyrics have {len(lyrics.pieces)} tokens, the attention {attention.shape[1]}; score them with "
            "the conditioning they were encoded in"
        )
    if lyrics.is_wordless:
        return LyricScore(Score(), attention.new_zeros(0, attention.shape[2]), None)
    energies = energy(attention)
    timing = dtw_path(consensus(attention))
    metrics = measure(energies, dtw_path(energies.square()), lyrics.sung)
    named = (
        NamedScore(LYRICS, metrics.score),
        NamedScore("lyrics_coverage", metrics.coverage),
        NamedScore("lyrics_monotonicity", metrics.monotonicity),
        NamedScore("lyrics_confidence", metrics.confidence),
    )
    return LyricScore(Score(named, timed_lines(lyrics, timing, energies, duration_s)), energies, timing)


def score_planned_lyrics(attention: Tensor, lyrics: Lyrics) -> Score:
    """Return the lyric score of a plan alone, from attention [H, N, F] in pure noise; it has no timed lines."""
    if lyrics.is_wordless:
        return Score()
    energies = energy(attention)
    return Score((NamedScore(LYRICS_PLANNED, measure(energies, dtw_path(energies.square()), lyrics.sung).score),))
