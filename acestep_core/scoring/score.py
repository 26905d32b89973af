"""The scores of takes: named numbers and timed lyrics, of one take and of a batch.

A Score starts empty and grows as scorers add to it. `rank` decides which takes are best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..constants import FRAME_RATE
from .lyrics import TimedLine

WEAK = 0.5  # a line with a lower confidence is weak, by default


@dataclass(frozen=True)
class NamedScore:
    """One number that says how good a take is; higher is better."""

    name: str
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f'score "{self.name}" must be a number, got {self.value}; score the take again')


@dataclass(frozen=True)
class Score:
    """The named scores of a take, and its timed lines."""

    named: tuple[NamedScore, ...] = ()
    lines: tuple[TimedLine, ...] = ()  # empty if the take was not scored by its lyrics, or has nothing to align

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.named):
            raise ValueError(f"each score of a take needs a name of its own, got {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the scores, in the order they were made."""
        return tuple(score.name for score in self.named)

    def value(self, name: str) -> float | None:
        """Return a score by name, None if the take does not have it."""
        return next((score.value for score in self.named if score.name == name), None)

    def extended(self, other: Score) -> Score:
        """Return this score with another's named scores added or replaced, and its lines if it has any."""
        others = tuple(score for score in self.named if score.name not in other.names)
        return Score(others + other.named, other.lines or self.lines)

    def later(self, by_s: float) -> Score:
        """Return this score with its lines by_s seconds later, for a take that is part of a longer one."""
        return replace(self, lines=tuple(line.later(by_s) for line in self.lines))


@dataclass(frozen=True)
class Scores:
    """The scores of a batch of takes, or of plans before any take was sampled."""

    takes: tuple[Score, ...]  # one for each take; where plans were scored, one for each plan
    plans: tuple[int, ...]  # the plan that each was sung from
    n_frames: int = 0  # length of each take in latent frames; 0 where plans were scored
    keys: tuple[str, ...] = field(default=(), compare=False)  # of what each take holds; none where that is not known

    def __post_init__(self) -> None:
        if len(self.takes) != len(self.plans):
            raise ValueError(f"{len(self.takes)} scores came with {len(self.plans)} plans; give the plan of each")
        if not self.takes:
            raise ValueError("there are no takes to keep scores of; score at least one")

    @property
    def is_of_plans(self) -> bool:
        """Tell whether plans were scored, not takes."""
        return not self.n_frames

    @property
    def summary(self) -> str:
        """Return what was scored, such as "4 takes of 12 s"."""
        count, length = len(self.takes), self.n_frames / FRAME_RATE
        plural = "" if count == 1 else "s"
        return f"{count} plan{plural}" if self.is_of_plans else f"{count} take{plural} of {length:g} s"

    def ordered(self, keys: Sequence[str]) -> Scores:
        """Return the scores of the takes that have these keys, in that order; as they are where nobody knows their own.

        Raises ValueError for a take that was not scored.
        """
        if not self.keys or not keys:
            return self
        unknown = next((item for item, key in enumerate(keys) if key not in self.keys), None)
        if unknown is not None:
            raise ValueError(
                f"take {unknown + 1} is not among the {self.summary} of this score; connect the one made of it"
            )
        return self.picked([self.keys.index(key) for key in keys])

    def of_items(self, plans: Sequence[int | None]) -> tuple[Score, ...]:
        """Return the Score of every item of a batch that was sung from these plans.

        Where plans were scored, each take gets the score of its plan; a single plan counts for all.
        Raises ValueError for another number of takes, or for a take of a plan that was not scored or is not known.
        """
        if self.is_of_plans:
            return tuple(self._of_plan(item, plan) for item, plan in enumerate(plans))
        if len(plans) != len(self.takes):
            raise ValueError(f"the score is of {self.summary}, not of {len(plans)}; connect the one made of them")
        return self.takes

    def extended(self, other: Scores) -> Scores:
        """Return these scores with another's of the same takes added; the other's replace those of the same name.

        Scores of plans are given to the takes that were sung from them, whichever of the two came first.
        Raises ValueError for scores of other takes.
        """
        base = other if self.is_of_plans else self
        pairs = zip(self._of_takes(base), other._of_takes(base), strict=True)
        return replace(base, takes=tuple(mine.extended(theirs) for mine, theirs in pairs))

    def picked(self, items: Sequence[int], plans: Sequence[int] | None = None) -> Scores:
        """Return the scores of some takes, in the order given, with new numbers for their plans if plans is given."""
        plans = [self.plans[item] for item in items] if plans is None else plans
        keys = tuple(self.keys[item] for item in items) if self.keys else ()
        return Scores(tuple(self.takes[item] for item in items), tuple(plans), self.n_frames, keys)

    def _of_plan(self, item: int, plan: int | None) -> Score:
        if len(self.takes) == 1:
            return self.takes[0]
        if plan is None:
            raise ValueError(
                f"nobody knows from which of the {self.summary} of this score take {item + 1} was sung; "
                "connect the latent of the sampler"
            )
        if plan not in self.plans:
            raise ValueError(
                f"take {item + 1} was sung from plan {plan + 1}, but the score is of {self.summary}; "
                "score the codes that the take was made with"
            )
        return self.takes[self.plans.index(plan)]

    def _of_takes(self, base: Scores) -> tuple[Score, ...]:
        """Return the Score of every one of another's takes."""
        if self.is_of_plans and not base.is_of_plans:
            return self.of_items(base.plans)
        if self.keys and base.keys and set(base.keys) <= set(self.keys):
            return self.ordered(base.keys).takes
        if (self.plans, self.n_frames) != (base.plans, base.n_frames) or (self.keys and base.keys):
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
        durations = " and ".join(f"{length / FRAME_RATE:g} s" for length in lengths)
        raise ValueError(f"takes of {durations} do not go into one batch; pick among takes of one length")
    takes = tuple(take for each in scores for take in each.takes)
    keys = tuple(key for each in scores for key in each.keys) if all(each.keys for each in scores) else ()
    return Scores(takes, tuple(plan for each in scores for plan in each.plans), lengths[0], keys)


def weakest_line(score: Score) -> TimedLine | None:
    """Return the line with the lowest confidence, None for a take without lines."""
    return min((line for line in score.lines if not line.is_tag), key=lambda line: line.confidence, default=None)


def weak_lines(score: Score, threshold: float = WEAK, most: int = 0) -> tuple[TimedLine, ...]:
    """Return the lines of a take with a confidence below threshold, in the order they are sung, without tags.

    most: at most this many, the weakest ones; 0 = all.
    """
    weak = [line for line in score.lines if not line.is_tag and line.confidence < threshold]
    chosen = sorted(range(len(weak)), key=lambda index: weak[index].confidence)[: most or len(weak)]
    return tuple(weak[index] for index in sorted(chosen))


def time_mask(lines: Sequence[TimedLine], n_frames: int, padding_s: float = 0.0) -> Tensor:
    """Return a mask [n_frames], 1 where a line is sung and padding_s before and after it, cut to the n_frames."""
    mask = torch.zeros(n_frames)
    for line in lines:
        # Times are multiples of a frame, apart from rounding errors.
        first = math.floor(round((line.start_s - padding_s) * FRAME_RATE, 6))
        stop = math.ceil(round((line.end_s + padding_s) * FRAME_RATE, 6))
        mask[max(first, 0) : max(stop, 0)] = 1
    return mask
