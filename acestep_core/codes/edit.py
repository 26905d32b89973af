"""Editing audio codes: cut, join, repeat, replace and crossfade.

Positions and lengths are in whole codes, five a second. Every plan gets the same edit; the plans of two inputs are
paired one by one, and a single plan is paired with every plan of the other. Codes are blended in the six quantised
numbers they stand for, where steps are equal and near values sound alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..constants import CODE_RATE
from ..models.tokenizer import dequantize, nearest
from ..types import AudioCodes

Ids = tuple[int, ...]


def n_codes_for(duration_s: float) -> int:
    """Return the number of codes nearest to duration_s; half a code rounds up."""
    return math.floor(duration_s * CODE_RATE + 0.5)


def excerpt(codes: AudioCodes, start: int = 0, stop: int | None = None) -> AudioCodes:
    """Return the codes from start up to stop, or up to the end.

    Raises ValueError if a plan ends before that, or if the span holds no code.
    """
    return _each(codes, lambda plan, sequence: sequence[_span(plan, sequence, start, stop)])


def join(first: AudioCodes, second: AudioCodes) -> AudioCodes:
    """Return the first codes followed by the second."""
    return _each_pair(first, second, lambda plan, a, b: a + b)


def repeat(codes: AudioCodes, times: int, start: int = 0, stop: int | None = None) -> AudioCodes:
    """Return codes with the span from start up to stop, by default all of them, repeated to play `times` times.

    Raises ValueError as excerpt does, and for times below 1.
    """
    if times < 1:
        raise ValueError(f"times must be 1 or more, got {times}")

    def looped(plan: int, sequence: Ids) -> Ids:
        span = _span(plan, sequence, start, stop)
        return sequence[: span.start] + times * sequence[span] + sequence[span.stop :]

    return _each(codes, looped)


def replace(first: AudioCodes, second: AudioCodes, start: int = 0, stop: int | None = None) -> AudioCodes:
    """Return the first codes with the span from start up to stop replaced by the beginning of the second.

    The length does not change. Raises ValueError as excerpt does, and if the second is shorter than the span.
    """

    def patched(plan: int, a: Ids, b: Ids) -> Ids:
        span = _span(plan, a, start, stop)
        length = span.stop - span.start
        if length > len(b):
            raise ValueError(
                f"plan {plan + 1}: {_s(length)} are to be replaced, the second codes last {_s(len(b))}; "
                "replace less or repeat them first"
            )
        return a[: span.start] + b[:length] + a[span.stop :]

    return _each_pair(first, second, patched)


def crossfade(first: AudioCodes, second: AudioCodes, overlap: int) -> AudioCodes:
    """Return both joined, the last `overlap` codes of the first blended with the first `overlap` codes of the second.

    Code i of the overlap is (i + 1) / (overlap + 1) of the way from first to second; all others stay exact.
    Raises ValueError for an overlap below 1, or longer than either.
    """
    if overlap < 1:
        raise ValueError(
            f"a crossfade needs an overlap of at least {_s(1)}, got {_s(overlap)}; make it longer or join instead"
        )

    def faded(plan: int, a: Ids, b: Ids) -> Ids:
        if overlap > min(len(a), len(b)):
            raise ValueError(
                f"plan {plan + 1}: an overlap of {_s(overlap)} is longer than the codes, which last {_s(len(a))} "
                f"and {_s(len(b))}; make it shorter"
            )
        weights = torch.arange(1, overlap + 1) / (overlap + 1)
        return a[:-overlap] + _blend(a[-overlap:], b[:overlap], weights) + b[overlap:]

    return _each_pair(first, second, faded)


def _blend(a: Ids, b: Ids, weights: Tensor) -> Ids:
    x, y = (dequantize(torch.tensor(each)) for each in (a, b))
    return tuple(nearest(x + weights[:, None] * (y - x)).tolist())


def _each(codes: AudioCodes, edit: Callable[[int, Ids], Ids]) -> AudioCodes:
    """Return every plan edited; edit takes the plan's number and its codes."""
    _check_not_empty(codes, "there are no codes to edit; plan some first")
    return AudioCodes(tuple(edit(plan, sequence) for plan, sequence in enumerate(codes.sequences)))


def _each_pair(first: AudioCodes, second: AudioCodes, edit: Callable[[int, Ids, Ids], Ids]) -> AudioCodes:
    """Return every pair of plans edited; a single plan is paired with all of the other."""
    _check_not_empty(first, "there are no codes to edit; plan some first")
    _check_not_empty(second, 'there are no second codes: connect some to "codes_2"')
    counts = (first.n_plans, second.n_plans)
    n_plans = max(counts)
    if not set(counts) <= {1, n_plans}:
        raise ValueError(f"{counts[0]} plans cannot be paired with {counts[1]}; use as many of each, or a single one")
    pairs = zip(*(n_plans // each.n_plans * each.sequences for each in (first, second)), strict=True)
    return AudioCodes(tuple(edit(plan, a, b) for plan, (a, b) in enumerate(pairs)))


def _span(plan: int, sequence: Ids, start: int, stop: int | None) -> slice:
    """Return start and stop as a slice inside the sequence; a stop of None is its end."""
    length = len(sequence)
    stop = length if stop is None else stop
    if start < 0:
        raise ValueError(f"start must be 0 s or more, got {_s(start)}")
    if start >= length:
        raise ValueError(f"plan {plan + 1}: the start at {_s(start)} is past the end at {_s(length)}; start earlier")
    if stop > length:
        raise ValueError(f"plan {plan + 1}: the span ends at {_s(stop)}, the codes at {_s(length)}; end it earlier")
    if stop <= start:
        raise ValueError(f"plan {plan + 1}: no code lies between {_s(start)} and {_s(stop)}; end the span later")
    return slice(start, stop)


def _check_not_empty(codes: AudioCodes, sentence: str) -> None:
    if not codes.n_plans or not all(codes.sequences):
        raise ValueError(sentence)


def _s(n_codes: int) -> str:
    return f"{n_codes / CODE_RATE:g} s"
