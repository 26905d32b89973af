"""Differential correction in the wavelet domain (DCW): nudges each step away from the predicted data.

Source: ace-step/ACE-Step-1.5, `acestep/models/*/modeling_*.py` (main of 2026-06-26); off by default here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("off", "low", "high", "double", "pix")


@dataclass(frozen=True)
class Dcw:
    """Mode and strengths of the correction."""

    mode: str = "off"  # of MODES
    scale: float = 0.05  # strength; in mode "double" of the low band only
    high_scale: float = 0.02  # strength of the high band in mode "double"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f'DCW mode "{self.mode}" is unknown; choose one of {", ".join(MODES)}')


def correct(x_next: Tensor, data: Tensor, t: float, dcw: Dcw) -> Tensor:
    """Return x_next [B, T, 64] pushed from the predicted data, low bands by t, high bands by 1 − t."""
    if dcw.mode == "pix":
        return x_next + dcw.scale * (x_next - data)
    high_scale = dcw.high_scale if dcw.mode == "double" else dcw.scale
    low_gain = t * dcw.scale if dcw.mode in ("low", "double") else 0.0
    high_gain = (1 - t) * high_scale if dcw.mode in ("high", "double") else 0.0
    low, high = haar(x_next - data)
    return x_next + inverse_haar(low_gain * low, high_gain * high)[:, : x_next.shape[1]]


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low and high Haar bands [B, ceil(T/2), C] over time; an odd length gains a frame of zeros."""
    even = F.pad(x, (0, 0, 0, x.shape[1] % 2))
    first, second = even[:, 0::2], even[:, 1::2]
    return (first + second) / 2**0.5, (first - second) / 2**0.5


def inverse_haar(low: Tensor, high: Tensor) -> Tensor:
    """Return the signal [B, 2n, C] of two bands [B, n, C]."""
    return torch.stack(((low + high) / 2**0.5, (low - high) / 2**0.5), dim=2).flatten(1, 2)
