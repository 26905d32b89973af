"""From a waveform to the bytes of an audio file, with metadata that ComfyUI's canvas reads back where it can.

Whole numbers are rounded here and not by the encoder, so that a lossless file is the sound to half its last bit.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import av
import torch
from torch import Tensor

from .recording import check_audio

# The highest rate of MP3 and the native one of Opus: what they cannot hold is brought here.
LOSSY_RATE = 48_000
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, LOSSY_RATE)


@dataclass(frozen=True)
class Format:
    """A kind of audio file, in FFmpeg's names."""

    container: str  # also the suffix
    codec: str
    sample_type: str
    bits: int = 0  # of the whole numbers that the codec takes, 0 for float
    bit_rate: int = 0  # bit/s, 0 leaves it to the codec
    rates: tuple[int, ...] = ()  # samples a second that the codec takes, empty for any

    @property
    def suffix(self) -> str:
        return f".{self.container}"

    @property
    def holds_any_level(self) -> bool:
        """Tell whether samples above full scale survive."""
        return self.codec == "pcm_f32le"


FORMATS: Mapping[str, Format] = {
    "flac": Format("flac", "flac", "s32", bits=24),
    "wav 16-bit": Format("wav", "pcm_s16le", "s16", bits=16),
    "wav 24-bit": Format("wav", "pcm_s24le", "s32", bits=24),
    "wav 32-bit float": Format("wav", "pcm_f32le", "flt"),
    "mp3 V0": Format("mp3", "libmp3lame", "fltp", rates=MP3_RATES),
    "mp3 320k": Format("mp3", "libmp3lame", "fltp", bit_rate=320_000, rates=MP3_RATES),
    "mp3 128k": Format("mp3", "libmp3lame", "fltp", bit_rate=128_000, rates=MP3_RATES),
    "opus 128k": Format("opus", "libopus", "flt", bit_rate=128_000, rates=(LOSSY_RATE,)),
    "opus 192k": Format("opus", "libopus", "flt", bit_rate=192_000, rates=(LOSSY_RATE,)),
}


def checked(audio: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return the waveform of core's AUDIO as [B, C, S] float32 on the CPU, and its rate.

    Raises ValueError for what no file can hold: more than two channels, NaN, nothing at all.
    """
    waveform, sample_rate = audio["waveform"], audio["sample_rate"]
    check_audio(waveform, sample_rate, "the audio")
    if not torch.isfinite(waveform).all():
        raise ValueError("the audio holds NaN or infinity; run the step that made it again")
    return waveform.float().cpu(), sample_rate


def excess_db(waveform: Tensor, kind: Format) -> float:
    """Return by how many dB, to a tenth, the peak is above what the format holds; 0 if it is not."""
    peak = waveform.abs().max().item()
    return 0.0 if kind.holds_any_level or peak <= 1 else round(20 * math.log10(peak), 1)


def rate_in(kind: Format, sample_rate: int) -> int:
    """Return the rate of a file: that of the audio, if the format has it."""
    return sample_rate if not kind.rates or sample_rate in kind.rates else LOSSY_RATE


def encode(waveform: Tensor, sample_rate: int, kind: Format, metadata: Mapping[str, Any]) -> bytes:
    """Return an audio file of a waveform [C, S], resampled if the format lacks its rate.

    metadata: JSON values by name, as core's save nodes write them: "prompt", "workflow".
    Raises ValueError for a rate that the format cannot be brought to hold.
    """
    layout = "mono" if waveform.shape[0] == 1 else "stereo"
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=kind.container) as container:
            container.metadata.update(_tags(kind, metadata))
            # Typed loosely: by its stubs any codec might be one of video or subtitles.
            stream: Any = container.add_stream(kind.codec, rate=rate_in(kind, sample_rate), layout=layout)
            stream.format = kind.sample_type
            if kind.bit_rate:
                stream.bit_rate = kind.bit_rate
            elif kind.container == "mp3":
                stream.codec_context.qscale = True  # LAME's own scale of quality, of which 0 is the default: V0
            frame = _frame(waveform, kind, layout)
            frame.sample_rate = sample_rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise ValueError(
            f"{kind.container} cannot hold audio of {sample_rate} samples a second ({error.strerror}); "
            "resample it to 44100 or 48000 first"
        ) from None
    if not file.getbuffer():
        raise ValueError(
            f"the audio lasts {waveform.shape[-1] / sample_rate:.1g} s, too short for {kind.container}; save it as wav"
        )
    return file.getvalue()


def _frame(waveform: Tensor, kind: Format, layout: str) -> av.AudioFrame:
    packed = waveform.T.reshape(1, -1)
    if not kind.bits:
        return av.AudioFrame.from_ndarray(packed.numpy(), format="flt", layout=layout)
    full_scale = 1 << (kind.bits - 1)
    whole = (packed * full_scale).round_().clamp_(-full_scale, full_scale - 1)
    if kind.bits == 16:
        return av.AudioFrame.from_ndarray(whole.short().numpy(), format="s16", layout=layout)
    # 24 bits travel as the upper part of 32.
    return av.AudioFrame.from_ndarray((whole.int() << 8).numpy(), format="s32", layout=layout)


def _tags(kind: Format, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata as the container can hold it: WAV knows no names of ours, so its comment takes all of it."""
    if kind.container == "wav":
        return {"comment": json.dumps(metadata)} if metadata else {}
    # ASCII, because the canvas does not decode UTF-8.
    return {name: json.dumps(value) for name, value in metadata.items()}
