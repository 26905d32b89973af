"""The values that travel between stages, frozen and checked when made, and which item belongs to which plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .constants import (
    CODE_RATE,
    INSTRUMENTAL_LYRICS,
    KEYS,
    LANGUAGES,
    MAX_BPM,
    MAX_DURATION_S,
    MAX_SEED,
    MAX_TEXT_LENGTH,
    MIN_BPM,
    MIN_DURATION_S,
    N_CODES,
    TIME_SIGNATURES,
    UNKNOWN_LANGUAGE,
)

if TYPE_CHECKING:
    from torch import Tensor

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # a null, and half a surrogate pair


@dataclass(frozen=True)
class SongSpec:
    """What a song should be. None lets the planner or the model decide."""

    caption: str = ""  # style, instruments, mood, in words
    lyrics: str = ""  # "[Instrumental]" asks for no voice
    language: str | None = None  # a code of LANGUAGES
    bpm: int | None = None  # beats per minute
    key: str | None = None  # such as "F# minor"
    time_signature: str | None = None  # beats of a bar: "2", "3", "4" or "6"
    duration_s: float | None = None

    def __post_init__(self) -> None:
        checked_text("caption", self.caption)
        checked_text("lyrics", self.lyrics)
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f'language "{self.language}" is unknown; use one of {", ".join(LANGUAGES[:-1])} or "{UNKNOWN_LANGUAGE}"'
            )
        if self.bpm is not None and not MIN_BPM <= self.bpm <= MAX_BPM:
            raise ValueError(f"bpm must be {MIN_BPM} to {MAX_BPM}, got {self.bpm}; 0 lets the model decide")
        if self.key is not None and self.key not in KEYS:
            raise ValueError(f'key "{self.key}" is unknown; write it like "C major", "F# minor" or "Eb major"')
        if self.time_signature is not None and self.time_signature not in TIME_SIGNATURES:
            raise ValueError(
                f'time signature "{self.time_signature}" is unknown; use {", ".join(TIME_SIGNATURES)} beats a bar'
            )
        if self.duration_s is not None and not MIN_DURATION_S <= self.duration_s <= MAX_DURATION_S:
            raise ValueError(
                f"duration must be {MIN_DURATION_S} to {MAX_DURATION_S} s, got {self.duration_s:g} s; 0 is auto"
            )

    @property
    def is_instrumental(self) -> bool:
        """Tell whether the lyrics ask for no voice at all."""
        return self.lyrics.strip().lower() == INSTRUMENTAL_LYRICS.lower()


def checked_text(name: str, text: str, max_length: int = MAX_TEXT_LENGTH) -> str:
    """Return a text that files and tokenizers take. name: what the text is, for the error.

    Raises ValueError for one that is too long, or has characters that no file and no tokenizer can hold.
    """
    if len(text) > max_length:
        raise ValueError(f'"{name}" has {len(text):,} characters; at most {max_length:,} are read, shorten it')
    wrong = _NO_TEXT.search(text)
    if wrong is not None:
        raise ValueError(
            f'"{name}" has {wrong[0]!a} at character {wrong.start() + 1}, which is no character of a text (what is '
            "left of an emoji cut in two, or a null); delete it"
        )
    return text


def cleaned_text(text: str) -> str:
    """Return a text that a model wrote without the characters that no file and no tokenizer can hold."""
    return _NO_TEXT.sub("", text)


@dataclass(frozen=True)
class AudioCodes:
    """Sequences of 5 Hz codes, one for each plan; none at all means the DiT plans by itself."""

    sequences: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for sequence in self.sequences:
            checked_codes(sequence)

    @property
    def n_plans(self) -> int:
        """Return how many sequences there are."""
        return len(self.sequences)

    @property
    def duration_s(self) -> float:
        """Return the length of the longest sequence in seconds."""
        return max((len(sequence) for sequence in self.sequences), default=0) / CODE_RATE


def checked_codes(codes: Sequence[int]) -> tuple[int, ...]:
    """Return a sequence of codes. Raises ValueError, naming the position, for one out of range."""
    for position, code in enumerate(codes):
        if not 0 <= code < N_CODES:
            raise ValueError(
                f"audio code {code} at position {position} is outside 0..{N_CODES - 1}; plan again or remove it"
            )
    return tuple(codes)


@dataclass(frozen=True)
class Take:
    """Where one item of a latent batch came from."""

    seed: int | None = None  # None where our sampler did not make it, or no seed mattered
    plan: int = 0  # which of the plans, or of a task's rows, it follows
    n_steps: int = 0  # 0 where nothing was sampled
    track: str = ""  # of a task that makes one


def in_turn(items: Tensor, rows: Tensor) -> Tensor:
    """Return the items of a batch that rows number, starting over where there are fewer items than rows."""
    return items[rows.to(items.device) % len(items)]


def plan_of(item: int, take: Take | None, n_plans: int) -> int:
    """Return which of n_plans an item of a batch follows: its take's plan, or its own number where none is known."""
    return (item if take is None else take.plan) % n_plans


def take_seeds(seed: int, n_takes: int, seeds: Sequence[int] = ()) -> tuple[int, ...]:
    """Return one seed for each take: seed, seed + 1, …, or the listed ones.

    Raises ValueError for no takes at all or a list of another length.
    """
    if n_takes < 1:
        raise ValueError(f"there must be at least one take, got {n_takes}")
    if seeds and len(seeds) != n_takes:
        raise ValueError(f"{len(seeds)} seeds are listed for {n_takes} takes; list one for each or none")
    wrong = next((s for s in (seed, *seeds) if not 0 <= s <= MAX_SEED), None)
    if wrong is not None:
        raise ValueError(f"seed {wrong} is outside 0..2^53-1")
    return tuple(seeds) or tuple((seed + i) % (MAX_SEED + 1) for i in range(n_takes))
