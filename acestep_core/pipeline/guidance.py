"""How two predictions, with and without the condition, become one guided velocity.

APG: Sadat et al., "Eliminating Oversaturation and Artifacts of High Guidance Scales", 2024.
ADG: angle-based guidance of the official project. CFG: Ho and Salimans, 2022.
Source: ace-step/ACE-Step-1.5, `acestep/models/common/apg_guidance.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .sample import Evaluation

APG_MOMENTUM = -0.75
APG_NORM_LIMIT = 2.5
# 3.14, not π: the official code writes it so.
ADG_MAX_ANGLE = 3.14 / 6
TIME = -2  # velocities are [B, T, 64]


@dataclass(frozen=True)
class Guidance:
    """Method, scale, and the noise levels between which it applies. A scale of 1 is no guidance."""

    method: str = "apg"
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f'guidance method "{self.method}" is unknown; choose one of {", ".join(METHODS)}')
        if not 0 <= self.scale <= 100:
            raise ValueError(f"guidance must be 0 to 100, got {self.scale:g}")
        start, end = self.interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"guidance interval must satisfy 0 <= start <= end <= 1, got {start:g} to {end:g}")

    def applies_at(self, t: float) -> bool:
        """Tell whether the unconditional prediction is needed at noise level t.

        The interval is compared with t itself; the official documentation calls it progress, its code does not.
        """
        return self.scale > 1 and self.interval[0] <= t <= self.interval[1]


class Guide:
    """One generation's guidance: calls a method and keeps APG's momentum from step to step."""

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self._momentum: Tensor | None = None

    def __call__(self, cond: Tensor, uncond: Tensor, x: Tensor, at: Evaluation) -> Tensor:
        """Return the guided velocity [B, T, 64] of two predictions at latents x.

        A Heun corrector must not advance the momentum: it gets plain CFG in place of APG.
        """
        scale = self.guidance.scale
        if self.guidance.method == "adg" and at.t > 0:
            return adg(cond, uncond, x, at.t, scale)
        if self.guidance.method == "cfg" or at.corrector or at.t <= 0:
            return cfg(cond, uncond, scale)
        guided, self._momentum = apg(cond, uncond, scale, self._momentum)
        return guided


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Return plain classifier-free guidance."""
    return uncond + scale * (cond - uncond)


def apg(cond: Tensor, uncond: Tensor, scale: float, momentum: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the projected guidance and the momentum for the next step.

    Only the part of the difference orthogonal to the conditional prediction is added, after a running
    average and a limit on its norm. Norms and projections run over time, for each channel.
    """
    difference = cond - uncond
    if momentum is not None:
        difference = difference + APG_MOMENTUM * momentum
    momentum = difference
    norm = difference.norm(dim=TIME, keepdim=True)
    difference = difference * torch.clamp(APG_NORM_LIMIT / norm, max=1.0)
    direction = torch.nn.functional.normalize(_exact(cond), dim=TIME)
    wide = _exact(difference)
    orthogonal = wide - (wide * direction).sum(TIME, keepdim=True) * direction
    return cond + (scale - 1) * orthogonal.to(cond.dtype), momentum


def adg(cond: Tensor, uncond: Tensor, x: Tensor, t: float, scale: float) -> Tensor:
    """Return angle-based guidance: each frame's predicted data turns further away from the unconditional one."""
    weight = max(scale - 1, 0.0) + 1e-3
    data, plain = x - t * cond, x - t * uncond
    difference = data - plain
    # Two predictions are often nearly parallel: the angle between them needs every digit.
    cosine = torch.nn.functional.cosine_similarity(_exact(data), _exact(plain), dim=-1)[..., None]
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos().to(x.dtype)
    turned = (weight * angle).clamp(-ADG_MAX_ANGLE, ADG_MAX_ANGLE)
    along = (difference * plain).sum(-1, keepdim=True) / ((plain**2).sum(-1, keepdim=True) + 1e-8)
    orthogonal = difference - along * plain
    stretch = torch.where(angle.sin() > 1e-3, turned.sin() / angle.sin(), torch.full_like(angle, weight))
    guided = turned.cos() * data + orthogonal * stretch
    return (x - guided) / t


def _exact(x: Tensor) -> Tensor:
    """Return x in float64, as the official code computes it; Apple's GPUs have none."""
    return x if x.device.type == "mps" else x.double()


METHODS: dict[str, Callable[..., object]] = {"apg": apg, "adg": adg, "cfg": cfg}
