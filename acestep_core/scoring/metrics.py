"""How well a take sings its lyrics, in four numbers: coverage, monotonicity, confidence, and the score of all.

Each counts tokens, not lines. The score compares takes of one song; between songs it says little.
Source: ace-step/ACE-Step-1.5, `acestep/core/scoring/dit_score.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .alignment import Path

COVERED = 0.1  # energy from which on a token counts as heard
COUNTED = 0.01  # energy from which on a frame pulls at a token's centre
TOLERANCE_FRAMES = 9  # 0.72 s that a token's centre may lie before the last one's
EPSILON = 1e-9
DIGITS = 4


@dataclass(frozen=True)
class Metrics:
    """What a path tells, each from 0 to 1.

    coverage: part of the sung tokens that are heard at all. monotonicity: part of them whose centre follows the
    one before. confidence: mean energy on the path.
    """

    coverage: float
    monotonicity: float
    confidence: float

    @property
    def score(self) -> float:
        """Return what all three make together, 0 to 1."""
        product = self.coverage**2 * self.monotonicity**2 * self.confidence
        return round(min(max(product, 0.0), 1.0), DIGITS)


def measure(energy: Tensor, path: Path, sung: Sequence[bool]) -> Metrics:
    """Return the metrics of a path through energy [N, F]. sung [N]: False for tokens of tags like [Chorus].

    Tags count for the confidence as words do: every frame is on the path.
    """
    cells = energy.double().numpy()
    words = cells[np.array(sung, dtype=bool)]
    coverage = float((words.max(1) > COVERED).mean()) if len(words) else 1.0
    return Metrics(coverage, _monotonicity(words), float(cells[path.tokens, path.frames].mean()))


def _monotonicity(words: NDArray[np.float64]) -> float:
    """Return which part of the rows of energy [L, F] have their centre after the one before, or hardly before it."""
    weights = np.where(words > COUNTED, words, 0.0)
    sums = weights.sum(1)
    heard = sums > EPSILON
    centres = weights[heard] @ np.arange(words.shape[1]) / sums[heard]
    if len(centres) < 2:
        return 1.0
    return float((np.diff(centres) >= -TOLERANCE_FRAMES).mean())
