"""What is known of how good takes are: named scores and timed lyrics, of one take and of a batch.

A Score starts empty and grows as scorers add to it. Which takes are best is `rank`'s question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..constants import FRAME_RATE
from .lyrics import TimedLine

WEAK = 0.5  # the confidence below which a line is weak, where nobody says otherwise


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


@dataclass(frozen=True)
class Scores:
    """The Score of every take, and the plan it was sung from.

    n_frames: length of each take in latent frames, on which its lines are timed; 0 where plans were scored and no
    takes, one Score for each plan.
    """

    takes: tuple[Score, ...]
    plans: tuple[int, ...]
    n_frames: int = 0

    def __post_init__(self) -> None:
        if len(self.takes) != len(self.plans):
            raise ValueError(f"{len(self.takes)} scores are told {len(self.plans)} plans; tell the plan of each")
        if not self.takes:
            raise ValueError("there are no takes to keep scores of; score at least one")

    @property
    def is_of_plans(self) -> bool:
        """Tell whether plans were scored, and no takes."""
        return not self.n_frames

    @property
    def summary(self) -> str:
        """Return what these are scores of, such as "4 takes of 12 s"."""
        count, length = len(self.takes), self.n_frames / FRAME_RATE
        plural = "" if count == 1 else "s"
        return f"{count} plan{plural}" if self.is_of_plans else f"{count} take{plural} of {length:g} s"

    def of_items(self, plans: Sequence[int | None]) -> tuple[Score, ...]:
        """Return the Score of every item of a batch, which was sung from these plans; None = from all in turn.

        Where plans were scored, a take has the score of its own; a single plan is everyone's.
        Raises ValueError for another number of takes, or a take of a plan that was not scored.
        """
        if self.is_of_plans:
            return tuple(self._of_plan(item, plan) for item, plan in enumerate(plans))
        if len(plans) != len(self.takes):
            raise ValueError(f"the score is of {self.summary}, not of {len(plans)}; connect the one made of them")
        return self.takes

    def extended(self, other: Scores) -> Scores:
        """Return these scores with another's of the same takes added; of equal names the other's count.

        Scores of plans go to the takes that were sung from them, whichever of both came first.
        Raises ValueError for scores of other takes.
        """
        base = other if self.is_of_plans else self
        pairs = zip(self._of_takes(base), other._of_takes(base), strict=True)
        return replace(base, takes=tuple(mine.extended(theirs) for mine, theirs in pairs))

    def picked(self, items: Sequence[int], plans: Sequence[int] | None = None) -> Scores:
        """Return the scores of some takes, in that order; plans: new numbers for the plans of those."""
        plans = [self.plans[item] for item in items] if plans is None else plans
        return Scores(tuple(self.takes[item] for item in items), tuple(plans), self.n_frames)

    def _of_plan(self, item: int, plan: int | None) -> Score:
        if len(self.takes) == 1:
            return self.takes[0]
        wanted = self.plans[item % len(self.plans)] if plan is None else plan
        if wanted not in self.plans:
            raise ValueError(
                f"take {item + 1} was sung from plan {wanted + 1}, but the score is of {self.summary}; "
                "score the codes that the take was made with"
            )
        return self.takes[self.plans.index(wanted)]

    def _of_takes(self, base: Scores) -> tuple[Score, ...]:
        """Return the Score of every one of another's takes."""
        if self.is_of_plans and not base.is_of_plans:
            return self.of_items(base.plans)
        if (self.plans, self.n_frames) != (base.plans, base.n_frames):
            first, second = sorted((self.summary, base.summary))
            these = f"{first} and of {second}" if first != second else f"{first} each, of other plans"
            raise ValueError(f"scores of {these} are not of the same takes; extend a score of the same latent")
        return self.takes


def joined(scores: Sequence[Scores]) -> Scores:
    """Return the scores of several batches of takes as one, batch by batch.

    Raises ValueError for takes of different length.
    """
    lengths = sorted({each.n_frames for each in scores})
    if len(lengths) > 1:
        told = " and ".join(f"{length / FRAME_RATE:g} s" for length in lengths)
        raise ValueError(f"takes of {told} do not go into one batch; pick among takes of one length")
    takes = tuple(take for each in scores for take in each.takes)
    return Scores(takes, tuple(plan for each in scores for plan in each.plans), lengths[0])


def weakest_line(score: Score) -> TimedLine | None:
    """Return the line sung least surely, None for a take without lines."""
    return min((line for line in score.lines if not line.is_tag), key=lambda line: line.confidence, default=None)


def weak_lines(score: Score, threshold: float = WEAK, most: int = 0) -> tuple[TimedLine, ...]:
    """Return the lines of a take below a confidence, in the order they are sung.

    most: only so many, those sung worst; 0 = all. Tags are no lines.
    """
    weak = [line for line in score.lines if not line.is_tag and line.confidence < threshold]
    chosen = sorted(range(len(weak)), key=lambda index: weak[index].confidence)[: most or len(weak)]
    return tuple(weak[index] for index in sorted(chosen))


def time_mask(lines: Sequence[TimedLine], n_frames: int, padding_s: float = 0.0) -> Tensor:
    """Return a mask [n_frames], 1 where a line is sung or will be in padding_s, or was; what no frame holds is cut."""
    mask = torch.zeros(n_frames)
    for line in lines:
        # Times are multiples of a frame's length, give or take a rounding.
        first = math.floor(round((line.start_s - padding_s) * FRAME_RATE, 6))
        stop = math.ceil(round((line.end_s + padding_s) * FRAME_RATE, 6))
        mask[max(first, 0) : max(stop, 0)] = 1
    return mask
