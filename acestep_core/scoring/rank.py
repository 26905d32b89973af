"""The best of many takes, by a weighted mean of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .score import Score


@dataclass(frozen=True)
class Weight:
    """How much a named score counts; 0 leaves it out."""

    name: str
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f'the weight of "{self.name}" must be 0 or above, got {self.weight}')


def mix(score: Score, weights: Sequence[Weight]) -> float:
    """Return the weighted mean of the scores that a take has, 0 if none of them has a weight."""
    parts = [(part.weight, score.value(part.name)) for part in weights]
    counted = [(weight, value) for weight, value in parts if value is not None and weight > 0]
    total = sum(weight for weight, _ in counted)
    return sum(weight * value for weight, value in counted) / total if counted else 0.0


def ranking(scores: Sequence[Score], weights: Sequence[Weight]) -> tuple[int, ...]:
    """Return the indices of all takes, best first; ties stay in order.

    Raises: ValueError if only some takes have a score with a weight: their means would not compare.
    """
    for part in weights:
        having = [index for index, score in enumerate(scores) if score.value(part.name) is not None]
        if part.weight > 0 and 0 < len(having) < len(scores):
            lacking = next(index for index in range(len(scores)) if index not in having)
            raise ValueError(
                f'take {having[0] + 1} has a score "{part.name}", take {lacking + 1} has none; score all alike'
                ", or give it weight 0"
            )
    mixed = [mix(score, weights) for score in scores]
    return tuple(sorted(range(len(scores)), key=lambda index: -mixed[index]))


def pick_best(scores: Sequence[Score], weights: Sequence[Weight], n_picks: int) -> tuple[int, ...]:
    """Return the indices of the n_picks best takes, best first.

    Raises: ValueError as ranking does, or unless n_picks is between 1 and the number of takes.
    """
    if not 1 <= n_picks <= len(scores):
        raise ValueError(f"{n_picks} takes cannot be picked of {len(scores)}; pick 1 to {len(scores)}")
    return ranking(scores, weights)[:n_picks]
