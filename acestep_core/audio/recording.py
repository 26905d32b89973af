"""A recording as the model needs it: 48 kHz, stereo, float32, within full scale.

All input audio passes through here: sources of tasks and references. What cannot be music is refused before a model
is loaded.
Source: ace-step/ACE-Step-1.5, `acestep/handler.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..constants import AUDIO_CHANNELS, SAMPLE_RATE, SAMPLES_PER_FRAME
from .level import SILENT_PEAK

# A resampling kernel has (from / gcd) · (to / gcd) entries: 2^27 of them take about 2 GB. Rates that share only a few
# hertz with 48 kHz would take forty.
MAX_FILTER_ENTRIES = 1 << 27


def recording(waveform: Tensor, sample_rate: int, name: str = "this audio") -> Tensor:
    """Return a waveform [B, C, S] as [B, 2, S'] float32 at 48 kHz; mono goes to both channels.

    Audio in that form comes back bit-equal. name: what errors call it.

    Raises: ValueError for more than two channels, NaN, silence, less than one latent frame, or a rate that
    cannot be brought to 48 kHz.
    """
    check_audio(waveform, sample_rate, name)
    if waveform.shape[-1] * SAMPLE_RATE < SAMPLES_PER_FRAME * sample_rate:
        raise ValueError(
            f"{name} lasts {waveform.shape[-1] / sample_rate:.4g} s, less than one latent frame of "
            f"{SAMPLES_PER_FRAME / SAMPLE_RATE:g} s; use a longer recording"
        )
    audio = _resampled(waveform.float(), sample_rate, name)
    low, high = audio.flatten(1).aminmax(dim=1)
    peaks = torch.maximum(high, -low)
    if not torch.isfinite(peaks).all():
        raise ValueError(f"{name} holds NaN or infinity; run the step that made it again")
    if bool((peaks < SILENT_PEAK).any()):
        which = name if len(peaks) == 1 else f"item {int(peaks.argmin()) + 1} of {name}"
        raise ValueError(f"{which} is silent; use a recording that can be heard")
    if bool((peaks > 1).any()):
        audio = audio.clamp(-1, 1)
    return audio.expand(-1, AUDIO_CHANNELS, -1)


def whole_frames(waveform: Tensor) -> Tensor:
    """Return a waveform [B, 2, S] with zeros behind it up to a whole latent frame, so that no tail is lost."""
    missing = -waveform.shape[-1] % SAMPLES_PER_FRAME
    return torch.nn.functional.pad(waveform, (0, missing)) if missing else waveform


def check_audio(waveform: Tensor, sample_rate: int, name: str) -> None:
    """Raise ValueError unless it is audio [items, 1 or 2 channels, samples] with a rate; name is for the message."""
    if waveform.ndim != 3 or not waveform.numel():
        raise ValueError(f"{name} is {list(waveform.shape)}, it must be [items, channels, samples] and not empty")
    if waveform.shape[1] > AUDIO_CHANNELS:
        raise ValueError(f"{name} has {waveform.shape[1]} channels; mix it down to stereo first")
    if sample_rate < 1:
        raise ValueError(f"{name} has a sample rate of {sample_rate}; it must be above 0, usually 44100 or 48000")


def _resampled(waveform: Tensor, sample_rate: int, name: str) -> Tensor:
    if sample_rate == SAMPLE_RATE:
        return waveform
    shared = math.gcd(sample_rate, SAMPLE_RATE)
    if (sample_rate // shared) * (SAMPLE_RATE // shared) > MAX_FILTER_ENTRIES:
        raise ValueError(
            f"{name} has {sample_rate} samples a second, which have too little in common with {SAMPLE_RATE}; "
            "resample it to 44100 or 48000 first"
        )
    from torchaudio.functional import resample

    audio: Tensor = resample(waveform, sample_rate, SAMPLE_RATE)
    return audio
