"""What the planner is good for: plan a song, make one from an idea, rewrite one, describe one it hears as codes.

Each is a prompt, a grammar and a run of the decoder; which fields the user gave and which the planner may fill
in is decided here.
Source: ace-step/ACE-Step-1.5, `acestep/inference.py` and `acestep/llm_inference.py` (the newer versions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ..codes.text import LEGAL_CODE
from ..constants import CODE_RATE, INSTRUMENTAL_LYRICS
from ..models.qwen3 import Qwen3
from ..types import AudioCodes, SongSpec, checked_codes
from . import prompts
from .decode import (
    FIRST_CODE_ID,
    MAX_CODES,
    MAX_TEXT_TOKENS,
    LmSampling,
    OnToken,
    codes_bytes,
    generate_codes,
    generate_text,
    text_bytes,
)
from .grammar import (
    MAX_TOKENS,
    MAX_WRITTEN_LYRIC_TOKENS,
    Grammar,
    Lexicon,
    left_to_infer,
    plan_fields,
    plan_grammar,
    song_grammar,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a plan adds to its prompt before the codes: a caption, and the other fields with their names.
MAX_THOUGHT_TOKENS = MAX_TOKENS["caption"] + 128


@dataclass(frozen=True)
class Thinking:
    """Which parts of planning to do. With none of them a song goes straight through."""

    codes: bool = True  # sketch the music in audio codes
    metadata: bool = True  # find tempo, key, time signature and length where the song leaves them open
    caption: bool = True  # write the caption out
    language: bool = True  # name the language where the song leaves it open

    @property
    def of_words(self) -> bool:
        """Tell whether anything but codes is to be thought of."""
        return self.metadata or self.caption or self.language


@dataclass(frozen=True)
class Plan:
    """A completed song, its codes (one sequence a plan), and the planner's thoughts as it wrote them."""

    song: SongSpec
    codes: AudioCodes
    blueprint: str


def always_ready(n_bytes: int) -> bool:
    """Reserve nothing, for weights that are where they are needed; without a CUDA graph."""
    return False


@dataclass(frozen=True, eq=False)
class Planner:
    """A planner and how to run it where its weights are."""

    model: Qwen3
    tokenizer: Tokenizer
    dtype: torch.dtype  # that it computes in
    device: torch.device
    max_lyric_tokens: int = MAX_WRITTEN_LYRIC_TOKENS
    # Called before each task with the bytes that it takes beside the weights: makes the weights resident, and tells
    # whether they stay where they are and uncast, so that a CUDA graph may read them.
    reserve: Callable[[int], bool] = always_ready

    @cached_property
    def lexicon(self) -> Lexicon:
        """Return what grammars need to know of the vocabulary; half a second the first time."""
        return Lexicon.of(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt. A code is one token, also where the tokenizer has words only."""
        ids: list[int] = []
        for index, part in enumerate(LEGAL_CODE.split(text)):
            is_code = index % 2
            ids += [FIRST_CODE_ID + int(part)] if is_code else self.tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def write(
        self, prompt: Sequence[int], grammar: Grammar, seed: int, sampling: LmSampling, on_token: OnToken | None = None
    ) -> str:
        """Return the text that the grammar lets the planner write behind the ids of a prompt."""
        ids = generate_text(self.model, prompt, grammar, seed, sampling, on_token, dtype=self.dtype, device=self.device)
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def plan(
    planner: Planner,
    song: SongSpec,
    thinking: Thinking,
    seeds: Sequence[int],
    sampling: LmSampling,
    negative: str = "",
    on_token: OnToken | None = None,
) -> Plan:
    """Return a song completed, and the codes of one plan for each seed.

    The thoughts are written once, with the first seed, and shared; what the user gave is never changed, but for
    a caption that is to be rewritten. Without any length the codes end where the planner ends them.
    Raises ValueError for a song that says nothing, and for a negative prompt that nothing listens to.
    """
    _check(song, thinking, sampling, negative)
    prompt = planner.ids(prompts.metadata_prompt(song))
    uncond = planner.ids(prompts.codes_prompt_without(negative))
    n_bytes = _plan_bytes(planner, song, thinking, prompt, uncond, len(seeds), sampling)
    n_codes = _n_codes(song) or MAX_CODES
    capture = _reserve(planner, n_bytes, on_token, n_codes if thinking.codes else MAX_TEXT_TOKENS)
    thought, blueprint = _think(planner, prompt, song, thinking, seeds[0], sampling, on_token)
    completed = _completed(song, thought, thinking)
    if not thinking.codes:
        return Plan(completed, AudioCodes(), blueprint)
    sequences = generate_codes(
        planner.model,
        planner.ids(prompts.codes_prompt(song, completed)),
        uncond,
        _n_codes(completed),
        seeds,
        sampling,
        on_token,
        capture,
        planner.dtype,
        planner.device,
    )
    return Plan(completed, AudioCodes(tuple(sequences)), blueprint or prompts.think_text(completed))


def idea(
    planner: Planner,
    sentence: str,
    instrumental: bool,
    language: str | None,
    seed: int,
    sampling: LmSampling,
    on_token: OnToken | None = None,
) -> SongSpec:
    """Return a whole song made from one sentence; an instrumental one has no words, whatever the planner wrote."""
    fixed = SongSpec(language=language)
    song = _whole_song(planner, prompts.idea_prompt(sentence, instrumental), fixed, seed, sampling, on_token)
    return replace(song, lyrics=INSTRUMENTAL_LYRICS) if instrumental else song


def rewrite(
    planner: Planner, song: SongSpec, seed: int, sampling: LmSampling, on_token: OnToken | None = None
) -> SongSpec:
    """Return a song with caption and lyrics written out anew; every field the user gave stays."""
    written = _whole_song(planner, prompts.format_prompt(song), song, seed, sampling, on_token)
    lyrics = song.lyrics if song.is_instrumental or not written.lyrics else written.lyrics
    return _filled(replace(song, caption=written.caption or song.caption, lyrics=lyrics), written)


def understand(
    planner: Planner, codes: Sequence[int], seed: int, sampling: LmSampling, on_token: OnToken | None = None
) -> SongSpec:
    """Return the song that a sequence of codes sounds like to the planner.

    Raises ValueError for no codes, and for one that is out of range.
    """
    codes = checked_codes(codes)
    if not codes:
        raise ValueError("there are no codes to understand; tokenize some audio or plan a song first")
    return _whole_song(planner, prompts.understand_prompt(codes), SongSpec(), seed, sampling, on_token)


def _check(song: SongSpec, thinking: Thinking, sampling: LmSampling, negative: str) -> None:
    """Raise ValueError for a plan that makes no sense."""
    if not (song.caption.strip() or song.lyrics.strip()):
        raise ValueError("the song has neither caption nor lyrics; say at least what it should sound like")
    if negative.strip() and thinking.codes and not sampling.is_guided:
        raise ValueError(
            f"negative works with a cfg_scale above 1, got {sampling.cfg_scale:g}; raise it or leave negative empty"
        )


def _n_codes(song: SongSpec) -> int | None:
    """Return how many codes fill a song; None where nobody knows its length."""
    return None if song.duration_s is None else int(song.duration_s * CODE_RATE)


def _reserve(planner: Planner, n_bytes: int, on_token: OnToken | None, n_tokens: int) -> bool:
    """Make the planner ready for a task, which then is at 0 of n_tokens; tell whether a CUDA graph may be captured."""
    may_capture = planner.reserve(n_bytes)
    if on_token is not None:
        on_token(0, n_tokens)
    return may_capture


def _plan_bytes(
    planner: Planner,
    song: SongSpec,
    thinking: Thinking,
    prompt: list[int],
    uncond: list[int],
    n_plans: int,
    sampling: LmSampling,
) -> int:
    """Return the memory that a plan takes at most, beside the weights.

    Raises ValueError for a song that is too long.
    """
    config, itemsize = planner.model.config, planner.dtype.itemsize
    words = text_bytes(config, prompt, itemsize) if thinking.of_words else 0
    if not thinking.codes:
        return words
    longest = prompt + MAX_THOUGHT_TOKENS * [0]
    conditions = [longest, uncond] if sampling.is_guided else [longest]
    return max(words, codes_bytes(config, conditions, _n_codes(song) or MAX_CODES, n_plans, itemsize))


def _think(
    planner: Planner,
    prompt: list[int],
    song: SongSpec,
    thinking: Thinking,
    seed: int,
    sampling: LmSampling,
    on_token: OnToken | None,
) -> tuple[SongSpec, str]:
    """Return what the planner thinks of a song, and its words; nothing where nothing is asked or left open."""
    fields = plan_fields(thinking.caption, thinking.language)
    if not thinking.of_words or not left_to_infer(song, fields):
        return SongSpec(), ""
    grammar = plan_grammar(planner.lexicon, song, fields)
    text = planner.write(prompt, grammar, seed, sampling, on_token)
    return prompts.parse_think(text), text.strip()


def _completed(song: SongSpec, thought: SongSpec, thinking: Thinking) -> SongSpec:
    """Return a song with those parts of a thought that were asked for."""
    if thinking.caption and thought.caption:
        song = replace(song, caption=thought.caption)
    if not thinking.language:
        thought = replace(thought, language=None)
    if not thinking.metadata:
        thought = SongSpec(language=thought.language)
    return _filled(song, thought)


def _filled(song: SongSpec, other: SongSpec) -> SongSpec:
    """Return a song whose open fields are taken from another."""
    names = ("language", "bpm", "key", "time_signature", "duration_s")
    return replace(song, **{name: getattr(other, name) for name in names if getattr(song, name) is None})


def _whole_song(
    planner: Planner, prompt: str, fixed: SongSpec, seed: int, sampling: LmSampling, on_token: OnToken | None
) -> SongSpec:
    ids = planner.ids(prompt)
    _reserve(planner, text_bytes(planner.model.config, ids, planner.dtype.itemsize), on_token, MAX_TEXT_TOKENS)
    grammar = song_grammar(planner.lexicon, fixed, planner.max_lyric_tokens)
    text = planner.write(ids, grammar, seed, sampling, on_token)
    return replace(prompts.parse_think(text), lyrics=prompts.parse_lyrics(text))
