"""The waveform of a task: the generated part, decoded and set into the untouched recordings of its sources.

Outside the region, beyond a short equal-power crossfade, every sample is the source's own. Only the frames that
are needed are decoded. Audio is [B, 2, S] float32 at 48 kHz.
Source: ace-step/ACE-Step-1.5, `repaint_waveform_splice` (main of 2026-06-26), whose crossfade is linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..constants import AUDIO_CHANNELS, SAMPLE_RATE, SAMPLES_PER_FRAME
from .tasks import Task

# Frames decoded on each side of a region and cut off: more than the VAE's reach of 9, so that the cut is exact.
DECODE_MARGIN = 12

Span = tuple[int, int]  # from, to
Decode = Callable[[Tensor], Tensor]  # latents [1, n, 64] to audio [1, 2, n · SAMPLES_PER_FRAME]


def keeps_source(task: Task) -> bool:
    """Tell whether a task keeps part of its sources as it is."""
    return task.mask is not None and (task.keep is not None or task.keeps_all)


def can_splice(task: Task) -> bool:
    """Tell whether a task keeps part of its sources and their recordings are at hand."""
    return keeps_source(task) and all(source.waveform is not None for source in task.sources)


def splice(latents: Tensor, task: Task, row: int, decode: Decode) -> Tensor:
    """Return the audio [2, S] of canvas latents [n_frames, 64] of a row, its sources' samples kept."""
    fade = 0 if task.keep is None else round(task.keep.crossfade_s * SAMPLE_RATE)
    audio = recordings(task, row)
    spans = regions(task, row)
    for start, stop in windows(spans, -(-fade // SAMPLES_PER_FRAME) + DECODE_MARGIN, task.n_frames):
        piece = decode(latents[None, start:stop])[0].to(audio)
        for span in spans:
            if start <= span[0] and span[1] <= stop:
                first, last = span[0] * SAMPLES_PER_FRAME, span[1] * SAMPLES_PER_FRAME
                _set_in(audio, piece, start * SAMPLES_PER_FRAME, first, last, _room(spans, span, fade))
    return audio


def recordings(task: Task, row: int) -> Tensor:
    """Return the sources' recordings on the canvas [2, S], silence where there are none.

    S is that of the frames, but for a last frame that a recording fills only in part.
    """
    n_samples = task.n_frames * SAMPLES_PER_FRAME
    for source in task.sources:
        if source.waveform is not None and source.stop == task.n_frames:
            n_samples = min(n_samples, source.start * SAMPLES_PER_FRAME + source.waveform.shape[-1])
    audio = torch.zeros(AUDIO_CHANNELS, n_samples)
    for source in task.sources:
        if source.waveform is not None:
            first, own = source.start * SAMPLES_PER_FRAME, source.waveform[row % source.waveform.shape[0]]
            audio[:, first : first + own.shape[-1]] = own[:, : n_samples - first]
    return audio


def regions(task: Task, row: int) -> tuple[Span, ...]:
    """Return the spans of frames in which anything is generated, in order."""
    assert task.mask is not None
    inside = (task.mask[row % task.mask.shape[0]] > 0).int()
    edges = torch.nn.functional.pad(inside, (1, 1)).diff().nonzero().flatten().tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def windows(spans: tuple[Span, ...], margin: int, n_frames: int) -> tuple[Span, ...]:
    """Return spans grown by a margin on both sides, those that meet joined."""
    grown: list[Span] = []
    for start, stop in spans:
        start, stop = max(0, start - margin), min(n_frames, stop + margin)
        if grown and start <= grown[-1][1]:
            grown[-1] = (grown[-1][0], stop)
        else:
            grown.append((start, stop))
    return tuple(grown)


def _room(spans: tuple[Span, ...], span: Span, fade: int) -> Span:
    """Return how many samples may fade before and after a span: half of what lies between it and its neighbours."""
    gaps = {(a, b): (b[0] - a[1]) * SAMPLES_PER_FRAME // 2 for a, b in pairwise(spans)}
    before = min((gap for (_, b), gap in gaps.items() if b == span), default=fade)
    after = min((gap for (a, _), gap in gaps.items() if a == span), default=fade)
    return min(fade, before), min(fade, after)


def _set_in(audio: Tensor, piece: Tensor, offset: int, first: int, last: int, fades: Span) -> None:
    """Put samples first..last of a piece that begins at offset into audio, and fade on both sides of them."""
    last = min(last, audio.shape[-1])
    audio[:, first:last] = piece[:, first - offset : last - offset]
    before, after = min(fades[0], first), min(fades[1], audio.shape[-1] - last)
    for start, rising in ((first - before, True), (last, False)):
        n = before if rising else after
        u = torch.linspace(0, 1, n + 2)[1:-1] * (math.pi / 2)
        new = piece[:, start - offset : start - offset + n]
        gain, other = (u.sin(), u.cos()) if rising else (u.cos(), u.sin())
        audio[:, start : start + n] = new * gain + audio[:, start : start + n] * other
