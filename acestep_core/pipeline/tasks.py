"""Every task as a row of data: which sources the model gets, where it generates, and what stays.

A Task is made before any checkpoint is known. Its sources lie on a canvas, which is the whole result; the model
sees a window of it. Where there is no source there is silence, which belongs to the checkpoint. `condition` brings a
task to the DiT; `assemble` (here) and `splice` put the result back among the sources.
Source: ace-step/ACE-Step-1.5, `acestep/constants.py` and `acestep/core/generation/handler/` (main of 2026-06-26).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..constants import (
    AUDIO_CHANNELS,
    FRAME_RATE,
    LATENT_CHANNELS,
    MAX_DURATION_S,
    MIN_FRAMES,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    frame_at,
)
from ..models.silence import fit, tile
from ..song.prompts import TRACKS, instruction
from ..types import in_turn
from .preserve import BALANCED, Keep

MAX_WINDOW_FRAMES = MAX_DURATION_S * FRAME_RATE


@dataclass(frozen=True)
class Rule:
    """What sets a task apart."""

    instruction: str  # key of the sentence that names the task to the model
    with_codes: str = ""  # key of the sentence where audio codes are given, if it is another
    hints: bool = False  # the model gets the source through the tokenizer, five frames to a code
    erases: bool = False  # the source is silenced inside the region
    codes: str = "refused"  # audio codes "win" over the source, go "inside" the region, or are "refused"
    needs_source: bool = True
    needs_base: bool = False  # only base checkpoints were trained on it


RULES = {
    # With codes the task is a cover to the model: it fills in what the codes sketch.
    "text2music": Rule("text2music", with_codes="cover", codes="win", needs_source=False),
    "cover": Rule("cover", hints=True, codes="win"),
    "cover-nofsq": Rule("cover-nofsq", codes="win"),
    "repaint": Rule("repaint", erases=True, codes="inside"),
    "extend": Rule("repaint", erases=True, codes="inside"),
    "stitch": Rule("repaint", erases=True, codes="inside"),
    "lego": Rule("lego", needs_base=True),
    "extract": Rule("extract", needs_base=True),
    "complete": Rule("complete", needs_base=True),
}


@dataclass(frozen=True, eq=False)
class Source:
    """A recording on the canvas."""

    latents: Tensor  # [B, n, 64]
    start: int = 0  # frame of the canvas where it begins
    waveform: Tensor | None = None  # [B, 2, S] at 48 kHz where known, so that what is kept is the recording itself

    def __post_init__(self) -> None:
        if self.latents.ndim != 3 or self.latents.shape[-1] != LATENT_CHANNELS or not self.latents.numel():
            raise ValueError(
                f"source latents must be [items, frames, {LATENT_CHANNELS}], got {list(self.latents.shape)}"
            )
        if not torch.isfinite(self.latents).all():
            raise ValueError("the source holds NaN or infinity; encode it again in another precision")
        if self.waveform is not None:
            self._check_waveform(self.waveform)

    def _check_waveform(self, waveform: Tensor) -> None:
        # Core's nodes that cut or pick latents pass the uncut recording on, which would be spliced in the wrong place.
        n_items = self.latents.shape[0]
        if waveform.ndim != 3 or waveform.shape[0] not in (1, n_items) or waveform.shape[1] != AUDIO_CHANNELS:
            raise ValueError(
                f"the recording is {list(waveform.shape)}, its latents need [{n_items}, {AUDIO_CHANNELS}, samples]; "
                "choose among recordings and encode again"
            )
        if not 0 <= self.n_frames - self.full_frames <= 1:
            raise ValueError(
                f"the recording has {waveform.shape[-1]} samples, its latents {self.n_frames} frames of "
                f"{SAMPLES_PER_FRAME}; cut the recording and encode it again"
            )

    @property
    def n_frames(self) -> int:
        """Return how many frames it lasts."""
        return self.latents.shape[1]

    @property
    def stop(self) -> int:
        """Return the frame of the canvas after its last."""
        return self.start + self.n_frames

    @property
    def duration_s(self) -> float:
        """Return how long the recording is, exactly where its waveform is known."""
        return self.n_frames / FRAME_RATE if self.waveform is None else self.waveform.shape[-1] / SAMPLE_RATE

    @property
    def full_frames(self) -> int:
        """Return how many of its frames are music to their end; the last may be filled up with zeros."""
        return self.n_frames if self.waveform is None else self.waveform.shape[-1] // SAMPLES_PER_FRAME


@dataclass(frozen=True, eq=False)
class Task:
    """What to do with sources on a canvas."""

    name: str  # a key of RULES
    sources: tuple[Source, ...] = ()
    n_frames: int = 0  # length of the canvas; 0 only without sources: whatever length is asked for
    mask: Tensor | None = None  # [1 or B, n_frames]: 1 = generate, 0 = keep, between = blend; None = everything
    window: tuple[int, int] = (0, 0)  # frames the model sees; past the canvas they are cut off afterwards
    tracks: tuple[tuple[str, ...], ...] = ((),)  # one row of the batch for each group of names
    strength: float = 1.0  # part of the steps that follow the source or the codes
    noise_strength: float = 0.0  # how much of the source the generation starts from
    keep: Keep | None = None  # how the source outside the mask is kept; None = it is not

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ValueError(f'task "{self.name}" is unknown; it must be one of {", ".join(RULES)}')
        if self.rule.needs_source and not self.sources:
            raise ValueError(f'{self.name} needs a source: connect a latent to "source"')
        _in_unit_range(f"{self.name} strength", self.strength)
        _in_unit_range(f"{self.name} noise strength", self.noise_strength)
        if self.window == (0, 0) and self.n_frames:
            shortest = MIN_FRAMES if self.sources else 0
            object.__setattr__(self, "window", (0, max(self.n_frames, shortest)))
        start, stop = self.window
        if stop - start > MAX_WINDOW_FRAMES:
            raise ValueError(
                f"{self.name} would generate over {(stop - start) / FRAME_RATE:g} s at once, "
                f"at most {MAX_DURATION_S} s fit; use a shorter source or less context"
            )
        items = {source.latents.shape[0] for source in self.sources}
        if len(items - {1}) > 1:
            raise ValueError(f"the sources have {' and '.join(map(str, sorted(items)))} items; use as many of each")
        if self.mask is not None:
            _check_mask(self.mask, self.n_frames, self.n_items)
        for track in (track for group in self.tracks for track in group):
            if track not in TRACKS:
                raise ValueError(f'track "{track}" is unknown; choose from {", ".join(TRACKS)}')

    @property
    def rule(self) -> Rule:
        """Return what sets the task apart."""
        return RULES[self.name]

    @property
    def n_items(self) -> int:
        """Return how many recordings each source holds."""
        return max((source.latents.shape[0] for source in self.sources), default=1)

    @property
    def n_rows(self) -> int:
        """Return how many generations this is: every group of tracks for every item, group by group."""
        return len(self.tracks) * self.n_items

    @property
    def window_frames(self) -> int:
        """Return how many frames the model generates; 0 = whatever length is asked for."""
        return self.window[1] - self.window[0]

    @property
    def duration_s(self) -> float:
        """Return the length that the prompt states: the source's, or the window's if that is not the whole."""
        if not self.sources:
            return self.n_frames / FRAME_RATE
        (source, *others) = self.sources
        if others or source.n_frames != self.n_frames or self.window[0] or self.window[1] < self.n_frames:
            return self.window_frames / FRAME_RATE
        return source.duration_s

    def instructions(self, has_codes: bool) -> list[str]:
        """Return the sentence for each row, a single one where all rows have the same."""
        key = (has_codes and self.rule.with_codes) or self.rule.instruction
        sentences = [instruction(key, group) for group in self.tracks]
        return sentences if len(sentences) == 1 else [each for each in sentences for _ in range(self.n_items)]

    def track_of(self, row: int) -> str:
        """Return the names of a row's tracks, empty for a task without."""
        return "+".join(self.tracks[row // self.n_items % len(self.tracks)])

    @property
    def keeps_all(self) -> bool:
        """Tell whether there is nothing to generate."""
        return self.mask is not None and not bool((self.mask > 0).any())

    def mask_in_window(self, n_frames: int) -> Tensor | None:
        """Return the mask [1 or B, n_frames] as the model sees it, 0 past the canvas; None = everything."""
        if self.mask is None:
            return None
        mask = self.mask[:, self.window[0] : self.window[0] + n_frames]
        return torch.nn.functional.pad(mask, (0, n_frames - mask.shape[1]))

    def source_in_window(self, n_frames: int, silence: Tensor) -> Tensor:
        """Return the sources [B, n_frames, 64] as the model sees them, in their own precision.

        silence [1, n, 64] fills the gaps; past the canvas it starts over from its first frame, as officially.
        """
        if not self.sources:
            return tile(silence, n_frames)
        start, stop = self.window[0], min(self.window[0] + n_frames, self.n_frames)
        silence = silence.to(self.sources[0].latents.dtype)
        canvas = tile(silence, stop - start).expand(self.n_items, -1, -1).clone()
        for source in self.sources:
            first, last = max(source.start, start), min(source.stop, stop)
            if first < last:
                latents = source.latents[:, first - source.start : last - source.start]
                canvas[:, first - start : last - start] = latents.to(canvas)
        return fit(canvas, n_frames, silence)

    def assemble(self, generated: Tensor, rows: Tensor) -> Tensor:
        """Return whole canvases [N, n_frames, 64]: generated windows [N, w, 64] of `rows`, the sources around them.

        Raises ValueError for latents of another length than the window's.
        """
        if not self.sources:
            return generated
        if generated.shape[1] != self.window_frames:
            raise ValueError(
                f"the latent has {generated.shape[1]} frames, the {self.name} generates {self.window_frames}; "
                "connect what was sampled for this task"
            )
        start = self.window[0]
        whole = generated.new_zeros(len(generated), self.n_frames, LATENT_CHANNELS)
        for source in self.sources:
            whole[:, source.start : source.stop] = in_turn(source.latents.to(whole), rows)
        stop = min(self.n_frames, start + generated.shape[1])
        whole[:, start:stop] = generated[:, : stop - start]
        return whole


def text2music(strength: float = 1.0, n_frames: int = 0) -> Task:
    """Return the task of making a song from nothing. strength: part of the steps that follow audio codes, if any."""
    _in_unit_range("codes strength", strength)
    return Task("text2music", n_frames=n_frames, strength=strength)


def cover(source: Source, strength: float = 1.0, noise_strength: float = 0.0, hints: bool = True) -> Task:
    """Return the task of a new version of a song: closer by strength, with more of its sound by noise_strength."""
    name = "cover" if hints else "cover-nofsq"
    return Task(name, (source,), source.n_frames, strength=strength, noise_strength=noise_strength)


def repaint(source: Source, mask: Tensor, keep: Keep | None = BALANCED) -> Task:
    """Return the task of generating the parts of a source again where mask [1 or B, n_frames] is above 0."""
    _check_mask(mask, source.n_frames, source.latents.shape[0])
    window = _window(*_span(mask), source.n_frames)
    return Task("repaint", (source,), source.n_frames, mask, window, keep=keep)


def extend(source: Source, left_s: float, right_s: float, context_s: float = 0.0) -> Task:
    """Return the task of continuing a source past either end.

    context_s: how much of the source the model hears on each extended side; 0 = as much as fits.
    Raises ValueError where nothing is to be added, or more than a window holds.
    """
    left, right = _frames("left", left_s), _frames("right", right_s)
    if left + right == 0:
        raise ValueError('there is nothing to extend: set "left" or "right" above 0 s')
    n_kept = source.full_frames if right else source.n_frames
    stop = left + n_kept
    mask = torch.zeros(1, stop + right)
    mask[:, :left] = 1
    if right:
        mask[:, stop:] = 1
    moved = Source(source.latents[:, :n_kept], left, source.waveform)
    window = _window(*_span(mask), mask.shape[1], _context(context_s))
    return Task("extend", (moved,), mask.shape[1], mask, window, keep=BALANCED)


def stitch(first: Source, second: Source, bridge_s: float, overlap_s: float = 0.0, context_s: float = 0.0) -> Task:
    """Return the task of joining two sources by bridge_s of new music.

    overlap_s: how much of either end is generated again too. context_s: as in `extend`.
    """
    bridge, overlap = _frames("bridge", bridge_s), _frames("overlap", overlap_s)
    if bridge + overlap == 0:
        raise ValueError('there is nothing to stitch with: set "bridge" or "overlap" above 0 s')
    if overlap >= min(first.full_frames, second.n_frames):
        raise ValueError(f"an overlap of {overlap_s:g} s leaves nothing of a source; make it shorter")
    end = first.full_frames
    after = Source(second.latents, end + bridge, second.waveform)
    mask = torch.zeros(1, after.stop)
    mask[:, end - overlap : after.start + overlap] = 1
    window = _window(*_span(mask), after.stop, _context(context_s))
    before = Source(first.latents[:, :end], 0, first.waveform)
    return Task("stitch", (before, after), after.stop, mask, window, keep=BALANCED)


def lego(source: Source, track: str, mask: Tensor | None = None, keep: Keep | None = BALANCED) -> Task:
    """Return the task of adding a named track; inside mask [1 or B, n_frames] only, where one is given."""
    if mask is None:
        return Task("lego", (source,), source.n_frames, tracks=((track,),))
    _check_mask(mask, source.n_frames, source.latents.shape[0])
    window = _window(*_span(mask), source.n_frames)
    return Task("lego", (source,), source.n_frames, mask, window, ((track,),), keep=keep)


def extract(source: Source, tracks: tuple[str, ...]) -> Task:
    """Return the task of separating tracks from a mix, one row of the batch each."""
    if not tracks:
        raise ValueError("choose at least one track to extract")
    return Task("extract", (source,), source.n_frames, tracks=tuple((track,) for track in tracks))


def complete(source: Source, tracks: tuple[str, ...] = ()) -> Task:
    """Return the task of adding the missing parts to a stem: the named tracks together, or whatever fits."""
    return Task("complete", (source,), source.n_frames, tracks=(tracks,))


def _window(first: int, last: int, n_frames: int, context: int = MAX_WINDOW_FRAMES) -> tuple[int, int]:
    """Return the frames a model sees to generate first..last: those, and context on both sides as far as it fits.

    Grown to the fewest frames a model generates: into the canvas first, then past its end.
    """
    room = max(0, MAX_WINDOW_FRAMES - (last - first))
    before, after = min(context, first), min(context, n_frames - last)
    before = min(before, max(room // 2, room - after))
    after = min(after, room - before)
    start = max(0, min(first - before, n_frames - MIN_FRAMES))
    return start, max(last + after, start + MIN_FRAMES)


def _span(mask: Tensor) -> tuple[int, int]:
    """Return the first frame that a mask generates, and the one after the last."""
    inside = (mask > 0).any(0).nonzero().flatten().tolist()
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _context(seconds: float) -> int:
    return _frames("context", seconds) or MAX_WINDOW_FRAMES


def _frames(name: str, seconds: float) -> int:
    if seconds < 0:
        raise ValueError(f'"{name}" must be 0 s or more, got {seconds:g} s')
    return frame_at(seconds)


def _in_unit_range(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be 0 to 1, got {value:g}")


def _check_mask(mask: Tensor, n_frames: int, n_items: int) -> None:
    if mask.ndim != 2 or mask.shape[0] not in (1, n_items) or mask.shape[1] != n_frames:
        raise ValueError(
            f"the mask covers {list(mask.shape)} items and frames, the source [{n_items}, {n_frames}]; "
            'make it with "ACE-Step Region" from the same latent'
        )
    if not torch.isfinite(mask).all() or bool(((mask < 0) | (mask > 1)).any()):
        raise ValueError("the mask must hold numbers from 0 (keep) to 1 (generate)")


# The task of making a song from nothing, as long as is asked for.
TEXT2MUSIC = text2music()
