"""How well a take sings its lyrics, in three numbers and their product: coverage, monotonicity, confidence, score.

Each counts tokens, not lines. The score compares takes of one song; between songs it says little.
Source: ace-step/ACE-Step-1.5, `acestep/core/scoring/dit_score.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .alignment import EPSILON, Path

COVERED = 0.1  # a token counts as sung above this energy
COUNTED = 0.01  # a frame counts towards a token's centre above this energy
TOLERANCE_FRAMES = 9  # 0.72 s: how far a token's centre may lie before the previous token's
DIGITS = 4


@dataclass(frozen=True)
class Metrics:
    """Three measures of an alignment, each from 0 to 1."""

    coverage: float  # share of the words' tokens that are sung at all
    monotonicity: float  # share of them whose centre in time follows the previous one's
    confidence: float  # mean energy on the path

    @property
    def score(self) -> float:
        """Return the official product of the three, 0 to 1."""
        product = self.coverage**2 * self.monotonicity**2 * self.confidence
        return round(min(max(product, 0.0), 1.0), DIGITS)


def measure(energy: Tensor, path: Path, sung: Sequence[bool]) -> Metrics:
    """Return the metrics of a path through energy [N, F]. sung [N]: False for tokens of tags like [Chorus].

    Tags count towards the confidence as words do, because the path visits every frame.
    """
    cells = energy.double().numpy()
    words = cells[np.array(sung, dtype=bool)]
    coverage = float((words.max(1) > COVERED).mean()) if len(words) else 1.0
    return Metrics(coverage, _monotonicity(words), float(cells[path.tokens, path.frames].mean()))


def _monotonicity(words: NDArray[np.float64]) -> float:
    """Return the share of rows of energy [L, F] whose centre is at most TOLERANCE_FRAMES before the previous one."""
    weights = np.where(words > COUNTED, words, 0.0)
    sums = weights.sum(1)
    sung = sums > EPSILON
    centres = weights[sung] @ np.arange(words.shape[1]) / sums[sung]
    if len(centres) < 2:
        return 1.0
    return float((np.diff(centres) >= -TOLERANCE_FRAMES).mean())
