"""Waveforms after decoding: level and fades. Audio is [B, 2, S] float32 at 48 kHz."""

from __future__ import annotations

import torch
from torch import Tensor

from ..constants import SAMPLE_RATE

# A peak below this is silence, which is not made louder.
SILENT_PEAK = 1e-6


def normalize_peak(audio: Tensor, peak_dbfs: float) -> Tensor:
    """Return each item scaled, up or down, so that its peak is peak_dbfs; silence does not change."""
    return audio * peak_gain(audio, peak_dbfs)


def peak_gain(audio: Tensor, peak_dbfs: float) -> Tensor:
    """Return the factor [B, 1, 1] that brings the peak of each item to peak_dbfs; 1 for silence.

    Raises ValueError for a peak above 0 dBFS.
    Source: ace-step/ACE-Step-1.5, `acestep/audio_utils.py`.
    """
    if peak_dbfs > 0:
        raise ValueError(f"the peak must be 0 dBFS or below, got {peak_dbfs:g}")
    peak = audio.abs().amax(dim=(1, 2), keepdim=True)
    gain = 10 ** (peak_dbfs / 20) / peak.clamp(min=SILENT_PEAK)
    return torch.where(peak < SILENT_PEAK, torch.ones_like(gain), gain)


def fade(audio: Tensor, fade_in_s: float, fade_out_s: float) -> Tensor:
    """Return audio with linear ramps at both ends, each no longer than the audio."""
    if not fade_in_s and not fade_out_s:
        return audio
    n_samples = audio.shape[-1]
    gain = torch.ones(n_samples, dtype=audio.dtype, device=audio.device)
    n_in = min(n_samples, round(fade_in_s * SAMPLE_RATE))
    n_out = min(n_samples, round(fade_out_s * SAMPLE_RATE))
    gain[:n_in] *= torch.linspace(0, 1, n_in, dtype=audio.dtype, device=audio.device)
    gain[n_samples - n_out :] *= torch.linspace(1, 0, n_out, dtype=audio.dtype, device=audio.device)
    return audio * gain
