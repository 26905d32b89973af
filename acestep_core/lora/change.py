"""What an adapter does to one weight: the factors, their scale, DoRA's magnitudes, and the sum.

LoRA, LoKr and LoHa write a large matrix with few numbers; Full writes it out. All treat a weight as a matrix
[out, in]; a convolution's kernel axes count towards `in`. Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: up [out, r] · down [r, in]."""

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        _check_rank(self.up, self.down)

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1:].numel()

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def matrix(self) -> Tensor:
        return self.up.flatten(1) @ self.down.flatten(1)

    def rows(self, start: int, stop: int) -> LowRank:
        return LowRank(self.up[start:stop], self.down)


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: the Kronecker product of outer [a, b] and inner [c, d], a matrix [a·c, b·d]."""

    outer: Tensor
    inner: Tensor
    rank: int | None = None  # of the side that was stored as two low-rank factors; None where neither was

    @property
    def shape(self) -> tuple[int, int]:
        return self.outer.shape[0] * self.inner.shape[0], self.outer.shape[1] * self.inner.shape[1:].numel()

    def matrix(self) -> Tensor:
        return torch.kron(self.outer, self.inner.flatten(1))

    def rows(self, start: int, stop: int) -> Full:
        return Full(self.matrix()[start:stop])


@dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa: the elementwise product of two low-rank matrices."""

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor

    def __post_init__(self) -> None:
        _check_rank(self.up_1, self.down_1)
        _check_rank(self.up_2, self.down_2)

    @property
    def shape(self) -> tuple[int, int]:
        return self.up_1.shape[0], self.down_1.shape[1:].numel()

    @property
    def rank(self) -> int:
        return self.down_1.shape[0]

    def matrix(self) -> Tensor:
        return (self.up_1 @ self.down_1.flatten(1)) * (self.up_2 @ self.down_2.flatten(1))

    def rows(self, start: int, stop: int) -> Hadamard:
        return Hadamard(self.up_1[start:stop], self.down_1, self.up_2[start:stop], self.down_2)


@dataclass(frozen=True, eq=False)
class Full:
    """The difference itself, as trainers store it for norms and biases."""

    difference: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.difference.shape[0], self.difference.shape[1:].numel()

    @property
    def rank(self) -> None:
        return None

    def matrix(self) -> Tensor:
        return self.difference.reshape(self.shape)

    def rows(self, start: int, stop: int) -> Full:
        return Full(self.difference[start:stop])


Factors = LowRank | Kronecker | Hadamard | Full


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one weight: factors times scale, and for DoRA the lengths of the result."""

    factors: Factors
    scale: float = 1.0
    magnitude: Tensor | None = None  # [out, 1] or [1, in]: the new length of each row or column of weight + change

    @property
    def alpha(self) -> float | None:
        """Return scale · rank, which trainers call alpha; None where there is no rank."""
        return None if self.factors.rank is None else self.scale * self.factors.rank

    def to(self, device: torch.device) -> Change:
        """Return the change on a device, float32."""

        def moved(value: Any) -> Any:
            return value.to(device, torch.float32) if isinstance(value, Tensor) else value

        values = (moved(getattr(self.factors, field.name)) for field in fields(self.factors))
        return Change(type(self.factors)(*values), self.scale, moved(self.magnitude))

    def rows(self, start: int, stop: int) -> Change:
        """Return the change of some rows of the weight. A magnitude must be of rows: one of columns covers all rows."""
        magnitude = None if self.magnitude is None else self.magnitude[start:stop]
        return Change(self.factors.rows(start, stop), self.scale, magnitude)


def merged(weight: Tensor, changes: Iterable[tuple[float, Change]]) -> Tensor:
    """Return a weight plus all changes, each times its strength, rounded once to the weight's dtype.

    Every change is computed from the weight passed in, so their order does not matter, not even with DoRA.
    """
    base = weight.detach().float().reshape(weight.shape[0], -1)
    total = base.clone()
    for strength, change in changes:
        change = change.to(weight.device)
        if change.magnitude is not None:
            total += strength * (_decomposed(base, change, change.magnitude) - base)
        elif isinstance(change.factors, LowRank):
            up, down = change.factors.up.flatten(1), change.factors.down.flatten(1)
            total.addmm_(up, down, alpha=strength * change.scale)
        else:
            total.add_(change.factors.matrix(), alpha=strength * change.scale)
    return total.reshape(weight.shape).to(weight.dtype)


def _check_rank(up: Tensor, down: Tensor) -> None:
    if up.ndim < 2 or down.ndim < 2 or up.shape[1:].numel() != down.shape[0]:
        raise ValueError(f"its two factors {list(up.shape)} and {list(down.shape)} do not belong together")


def _decomposed(base: Tensor, change: Change, magnitude: Tensor) -> Tensor:
    """Return base plus the change, each row or column scaled to its new length.

    Divides by the length of the sum, as PEFT and LyCORIS do; ComfyUI divides rows by the length of the base.
    Source: huggingface/peft, `src/peft/tuners/lora/dora.py`; KohakuBlueleaf/LyCORIS, `lycoris/functional/general.py`.
    """
    summed = base + change.scale * change.factors.matrix()
    of_rows = magnitude.shape[1] == 1 and magnitude.shape[0] == base.shape[0]
    lengths = summed.norm(dim=1 if of_rows else 0, keepdim=True)
    return summed * (magnitude / lengths.clamp_min(torch.finfo(torch.float32).eps))
