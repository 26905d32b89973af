"""Synthesised music to stand in for a user's own: what tests and workflows load as `song.flac` and so on.

Chords, a bass and a beat, or a vibrating voice-like tone; the same samples on every machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 48_000
BEAT_S = 0.5
# Semitones above A2 of each bar's triad.
CHORDS = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))
A2_HZ = 110.0

Samples = np.ndarray  # [S, 2] float


def write_recordings(input_dir: Path) -> None:
    """Write `song.flac`, `second.flac` and `voice.flac` into ComfyUI's input folder."""
    input_dir.mkdir(parents=True, exist_ok=True)
    for name, samples in {"song": song(20.01, 0), "second": song(12.3, 5), "voice": voice(11.0)}.items():
        soundfile.write(input_dir / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_24")


def song(duration_s: float, transpose: int) -> Samples:
    """Return a band of three: chords to the left, bass in the middle, a hat to the right."""
    t = _time(duration_s)
    bar = (t // (4 * BEAT_S)).astype(int) % len(CHORDS)
    decay = np.exp(-6 * (t % BEAT_S))
    tones = np.array(CHORDS)[bar] + transpose
    chords = sum(np.sin(2 * np.pi * _hz(tones[:, i] + 12) * t) for i in range(3)) / 3
    bass = np.sign(np.sin(2 * np.pi * _hz(tones[:, 0]) * t)) * decay
    hat = np.random.default_rng(transpose).standard_normal(len(t)) * np.exp(-60 * (t % (BEAT_S / 2)))
    return np.stack((0.3 * chords + 0.15 * bass, 0.2 * chords + 0.15 * bass + 0.1 * hat), axis=1)


def voice(duration_s: float) -> Samples:
    """Return one tone a bar with vibrato and breaths between."""
    t = _time(duration_s)
    bar = (t // (4 * BEAT_S)).astype(int) % len(CHORDS)
    vibrato = 2 * np.sin(2 * np.pi * 5 * t)
    tone = sum(np.sin(n * (2 * np.pi * _hz(np.array(CHORDS)[bar, 1] + 12) * t + vibrato / n)) / n for n in (1, 2, 3, 4))
    sung = np.clip(8 * np.sin(np.pi * (t % (4 * BEAT_S)) / (4 * BEAT_S)), 0, 1)
    return np.repeat((0.25 * tone * sung)[:, None], 2, axis=1)


def _time(duration_s: float) -> np.ndarray:
    return np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE


def _hz(semitones: np.ndarray) -> np.ndarray:
    return A2_HZ * 2.0 ** (semitones / 12)
