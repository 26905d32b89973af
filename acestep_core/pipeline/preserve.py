"""What a repaint keeps of its source: put back while sampling, blended in at the end, and faded as sound.

Source: ace-step/ACE-Step-1.5, `acestep/core/generation/handler/` (`resolve_repaint_mode`, main of 2026-06-26).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..constants import FRAME_RATE

# The widest crossfade of a mode, of latents and of the waveform. Source: as above.
CROSSFADE_FRAMES = FRAME_RATE
CROSSFADE_S = 0.05

KEEP_MODES = ("balanced", "conservative", "aggressive")


@dataclass(frozen=True)
class Keep:
    """How strongly the source outside a region is kept."""

    injection: float  # part of the steps after which the source is put back at the step's noise level
    crossfade_frames: int  # latent frames outside each edge over which the result fades into the source
    crossfade_s: float  # the same fade in the waveform, in seconds


def keep(mode: str, strength: float = 0.5) -> Keep | None:
    """Return how a repaint mode keeps the source; None where it does not (aggressive).

    strength places balanced between conservative (0) and aggressive (1).
    Raises ValueError for an unknown mode or a strength outside 0..1.
    """
    if mode not in KEEP_MODES:
        raise ValueError(f'repaint mode "{mode}" is unknown; choose {", ".join(KEEP_MODES)}')
    if not 0 <= strength <= 1:
        raise ValueError(f"repaint strength must be 0 to 1, got {strength:g}")
    if mode == "aggressive":
        return None
    share = 1.0 if mode == "conservative" else 1.0 - strength
    return Keep(share, round(CROSSFADE_FRAMES * share), CROSSFADE_S * share)


BALANCED = Keep(0.5, round(CROSSFADE_FRAMES * 0.5), CROSSFADE_S * 0.5)
# Core's noise mask: the source stays in every step, then fades over 0.4 s.
NOISE_MASK = Keep(injection=1.0, crossfade_frames=10, crossfade_s=0.0)


@dataclass(frozen=True, eq=False)
class Preserve:
    """A source [B, T, 64] and the mask [B, T] outside which it is kept: 0 = keep, 1 = generate, between = blend."""

    source: Tensor
    mask: Tensor
    keep: Keep = BALANCED

    @property
    def inside(self) -> Tensor:
        """Return where anything at all is generated, bool [B, T]."""
        return self.mask > 0

    def rows(self, rows: slice) -> Preserve:
        """Return the part of a batch that `rows` selects."""
        return Preserve(self.source[rows], self.mask[rows], self.keep)

    def to(self, device: torch.device) -> Preserve:
        """Return the same on a device."""
        return Preserve(self.source.to(device), self.mask.to(device), self.keep)


def blend(x: Tensor, preserve: Preserve) -> Tensor:
    """Return x where the mask is 1, the source where it is 0, and a linear fade on the frames around hard edges."""
    hard = feather(preserve.mask >= 1, preserve.keep.crossfade_frames)
    weight = torch.maximum(preserve.mask.to(x), hard.to(x))
    return torch.lerp(preserve.source, x, weight[..., None])


def feather(inside: Tensor, n_frames: int) -> Tensor:
    """Return weights [B, T]: 1 inside, falling linearly to 0 over n_frames outside every edge."""
    frame = torch.arange(inside.shape[1], device=inside.device)
    big = inside.shape[1] + n_frames + 1
    before = torch.where(inside, frame, -big).cummax(1).values  # the last inside frame so far
    after = torch.where(inside, frame, big + frame[-1]).flip(1).cummin(1).values.flip(1)
    distance = torch.minimum(frame - before, after - frame)
    return (1 - distance / (n_frames + 1)).clamp(0, 1)
