"""Core's CONDITIONING as an encoded song, and back.

What core has a place for lies in core's place, where its nodes look and write: the text states are the tensor, lyrics,
audio codes and reference latents have core's keys. Beside them travels `Beside`, which holds only what core knows
nothing of. A CONDITIONING of core's own text encoder has none, and is read as core's model reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...acestep_core.models.conditioner import Tokens
from ...acestep_core.pipeline.condition import Encoding
from ...acestep_core.pipeline.tasks import Source, Task
from ...acestep_core.song.tokens import LyricIds
from ...acestep_core.types import AudioCodes
from .latents import ACESTEP_KEY, Origins

# In core's conditioning dict, for our sampler's takes: the Encoding, and the plan of each item of a batch.
ENCODING_KEY = "acestep_encoding"
ROWS_KEY = "acestep_rows"
# Core's own keys in it, and those that limit a condition in time or place, or change the weights under it.
LIMITS = {"hooks", "area", "mask", "start_percent", "end_percent", "default"}
LYRICS_KEY, CODES_KEY, REFERENCES_KEY = "conditioning_lyrics", "audio_codes", "reference_audio_timbre_latents"


@dataclass(frozen=True, eq=False)
class Beside:
    """What core's CONDITIONING has no place for, and the tensors it was made with, to tell when they are others."""

    text: Tokens  # as encoded
    text_to_music: Tokens  # the same under the text2music instruction
    lyric_ids: LyricIds | None
    task: Task
    references: tuple[torch.Tensor, ...]  # [1, 64, n] each
    origins: Origins


@dataclass(frozen=True, eq=False)
class Part:
    """One of the conditions that a CONDITIONING combines."""

    states: torch.Tensor  # text states [1 or P, L, D]
    extras: Mapping[str, Any]
    encoding: Encoding


@dataclass(frozen=True, eq=False)
class Prompt:
    """Core's CONDITIONING, unwrapped once, for latents of n_frames."""

    parts: tuple[Part, ...]
    origins: Origins

    @classmethod
    def of(cls, conditioning: list, n_frames: int) -> Prompt:
        """Return the prompt of a CONDITIONING.

        Raises ValueError for one that is not ACE-Step 1.5's, or that combines songs which cannot share a take.
        """
        if not conditioning:
            raise ValueError('this CONDITIONING is empty; make it with "ACE-Step Encode Song"')
        parts = tuple(Part(states, extras, encoding_of(states, extras, n_frames)) for states, extras in conditioning)
        first = parts[0].encoding.task
        for part in parts[1:]:
            if part.encoding.task is not first and (part.encoding.task.sources or first.sources):
                raise ValueError(
                    f"the combined CONDITIONINGs have different tasks ({first.name}, {part.encoding.task.name}); "
                    "give all of them the same one"
                )
        beside: Beside | None = parts[0].extras.get(ACESTEP_KEY)
        return cls(parts, Origins() if beside is None else beside.origins)

    @property
    def encoding(self) -> Encoding:
        """Return the encoding of the first part, which tells the task and the lyrics."""
        return self.parts[0].encoding

    @property
    def is_plain(self) -> bool:
        """Tell whether it is a single condition that nothing limits in time or place, under the MODEL's own weights."""
        return len(self.parts) == 1 and not LIMITS & self.parts[0].extras.keys()

    @property
    def task(self) -> Task:
        """Return what to do with which sources."""
        return self.encoding.task

    @property
    def n_plans(self) -> int:
        """Return how many plans a batch of takes is spread over."""
        return max(part.encoding.n_plans for part in self.parts)

    @property
    def n_tokens(self) -> int:
        """Return how long the longest packed condition is."""
        return max(part.encoding.n_tokens for part in self.parts)

    def for_takes(self, plans: Sequence[int]) -> tuple[list, list]:
        """Return the CONDITIONING of takes of these plans, with its text and without."""
        positive, negative = [], []
        for part in self.parts:
            rows = tuple(plan % part.encoding.n_plans for plan in plans)
            extras = {**part.extras, ENCODING_KEY: part.encoding, ROWS_KEY: rows}
            positive.append([part.states, extras])
            negative.append([torch.zeros_like(part.states), extras])
        return positive, negative


def conditioning_of(encoding: Encoding, origins: Origins) -> list:
    """Return core's CONDITIONING of an encoding. origins: where its samplings are remembered."""
    references = () if encoding.timbre is None else tuple(encoding.timbre.transpose(1, 2).split(1))
    extras: dict[str, Any] = {
        "pooled_output": None,
        LYRICS_KEY: encoding.lyric.states,
        ACESTEP_KEY: Beside(
            encoding.text, encoding.text_to_music, encoding.lyric_ids, encoding.task, references, origins
        ),
    }
    if encoding.codes.n_plans:
        extras[CODES_KEY] = [list(sequence) for sequence in encoding.codes.sequences]
    if references:
        extras[REFERENCES_KEY] = list(references)
    return [[encoding.text.states, extras]]


def encoding_of(states: torch.Tensor | None, extras: Mapping[str, Any], n_frames: int) -> Encoding:
    """Return what a condition of core's asks for: text states [1 or P, L, D], and the dict beside them.

    n_frames: length of the latents it is for.

    Raises ValueError for a CONDITIONING of another model, or one whose second text no longer fits the first.
    """
    lyric = extras.get(LYRICS_KEY)
    if states is None or lyric is None:
        raise ValueError(
            'this CONDITIONING is not ACE-Step 1.5\'s; make it with "ACE-Step Encode Song" or TextEncodeAceStepAudio1.5'
        )
    beside: Beside | None = extras.get(ACESTEP_KEY)
    text = text_to_music = _unpadded(states)
    ours = Encoding(text, text_to_music, _unpadded(lyric), codes=_codes(extras))
    if beside is not None:
        text, text_to_music = _texts(states, beside)
        ours = replace(ours, text=text, text_to_music=text_to_music, lyric_ids=beside.lyric_ids, task=beside.task)
    references = tuple(extras.get(REFERENCES_KEY) or ())
    if not references:
        return ours
    if (
        beside is not None
        and len(references) == len(beside.references)
        and all(map(_is_same, references, beside.references))
    ):
        return replace(ours, timbre=torch.cat(references).transpose(1, 2))
    # A node of core's has added a reference. Core's model takes the last as timbre, and as the song to cover.
    reference = references[-1].transpose(1, 2)
    if ours.task.sources:
        return replace(ours, timbre=reference)
    cover = Task("cover", (Source(reference[:, :n_frames]),), n_frames, window=(0, n_frames))
    return replace(ours, timbre=reference, codes=AudioCodes(), task=cover)


def _texts(states: torch.Tensor, beside: Beside) -> tuple[Tokens, Tokens]:
    """Return the text under the task's instruction and under text2music's, of states that a node may have changed."""
    if _is_same(states, beside.text.states):
        return beside.text, beside.text_to_music
    known = beside.text.attention_mask
    attention_mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    n_known = min(known.shape[1], states.shape[1])
    attention_mask[:, :n_known] = known[:, :n_known].to(states.device)
    text = Tokens(states, attention_mask)
    if beside.text_to_music is beside.text:
        return text, text
    if beside.task.strength < 1 and bool(torch.count_nonzero(states)):
        raise ValueError(
            f"a node has changed the text of this CONDITIONING, but the last {1 - beside.task.strength:.0%} of the "
            "steps follow another text of the same song, which it cannot reach; set the strength to 1, or mix songs "
            'before "ACE-Step Encode Song"'
        )
    return text, beside.text_to_music


def _codes(extras: Mapping[str, Any]) -> AudioCodes:
    codes = extras.get(CODES_KEY)
    return AudioCodes() if codes is None else AudioCodes(tuple(tuple(sequence) for sequence in codes))


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.to(other.device), other))


def _unpadded(states: torch.Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
