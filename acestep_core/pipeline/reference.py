"""Reference recordings, whose sound a song should imitate: 30 seconds of each, as latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..constants import LATENT_CHANNELS, REFERENCE_FRAMES, SAMPLES_PER_FRAME

N_PARTS = 3
EXCERPT_SAMPLES = REFERENCE_FRAMES * SAMPLES_PER_FRAME  # 30 s
PART_SAMPLES = EXCERPT_SAMPLES // N_PARTS  # 10 s


@dataclass(frozen=True, eq=False)
class Reference:
    """Latents [R, 750, 64] of R recordings; the timbre encoder turns each into one vector."""

    latents: Tensor

    def __post_init__(self) -> None:
        shape = list(self.latents.shape)
        if shape[1:] != [REFERENCE_FRAMES, LATENT_CHANNELS] or not shape[0]:
            raise ValueError(
                f"a reference must be [recordings, {REFERENCE_FRAMES}, {LATENT_CHANNELS}], got {shape}; "
                'make it with "ACE-Step Reference"'
            )
        if not torch.isfinite(self.latents).all():
            raise ValueError("the reference holds NaN or infinity; encode it again in another precision")

    @property
    def n_recordings(self) -> int:
        """Return how many recordings there are."""
        return self.latents.shape[0]

    def beside(self, others: Reference) -> Reference:
        """Return the other recordings followed by these."""
        return Reference(torch.cat((others.latents, self.latents.to(others.latents))))


def excerpt(waveform: Tensor) -> Tensor:
    """Return 30 s [B, 2, 1440000] of recordings [B, 2, S] at 48 kHz.

    10 s are from the start, 10 s from one third in, 10 s from the end; a shorter recording is repeated up to 30 s.
    The official code draws a place in each third at random, without the user's seed; these are diffusers' places.
    Source: ace-step/ACE-Step-1.5, `acestep/handler.py`; huggingface/diffusers, `pipeline_ace_step.py`.
    """
    if waveform.shape[-1] < EXCERPT_SAMPLES:
        waveform = waveform.repeat(1, 1, -(-EXCERPT_SAMPLES // waveform.shape[-1]))
    n_samples = waveform.shape[-1]
    starts = (0, n_samples // N_PARTS, n_samples - PART_SAMPLES)
    return torch.cat([waveform[..., start : start + PART_SAMPLES] for start in starts], dim=-1)
