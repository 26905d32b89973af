"""What the planner is good for: plan a song, make one from an idea, rewrite one, describe one it hears as codes.

Each is a prompt, a grammar and a run of the decoder; which fields the user gave and which the planner may fill
in is decided here.
Source: ace-step/ACE-Step-1.5, `acestep/inference.py` and `acestep/llm_inference.py` (the newer versions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ..constants import CODE_RATE, INSTRUMENTAL_LYRICS
from ..models.qwen3 import Qwen3
from ..types import AudioCodes, SongSpec
from . import prompts
from .decode import LmSampling, OnToken, generate_codes, generate_text
from .grammar import (
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


@dataclass(frozen=True)
class Thinking:
    """Which parts of planning to do. With none of them a song goes straight through.

    codes: sketch the music in audio codes. metadata: find tempo, key, time signature and length where the song
    leaves them open. caption: write the caption out. language: tell the language where the song leaves it open.
    """

    codes: bool = True
    metadata: bool = True
    caption: bool = True
    language: bool = True


@dataclass(frozen=True)
class Plan:
    """A completed song, its codes (one sequence a plan), and the planner's thoughts as it wrote them."""

    song: SongSpec
    codes: AudioCodes
    blueprint: str


@dataclass(frozen=True, eq=False)
class Planner:
    """A loaded planner: how to run it where its weights are, and how long its lyrics may get."""

    model: Qwen3
    tokenizer: Tokenizer
    dtype: torch.dtype
    device: torch.device
    max_lyric_tokens: int = MAX_WRITTEN_LYRIC_TOKENS

    @cached_property
    def lexicon(self) -> Lexicon:
        """Return what grammars need to know of the vocabulary; half a second the first time."""
        return Lexicon.of(self.tokenizer)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def write(
        self, prompt: str, grammar: Grammar, seed: int, sampling: LmSampling, on_token: OnToken | None = None
    ) -> str:
        """Return the text that the grammar lets the planner write behind a prompt."""
        ids = generate_text(
            self.model, self.ids(prompt), grammar, seed, sampling, on_token, dtype=self.dtype, device=self.device
        )
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def plan(
    planner: Planner,
    song: SongSpec,
    thinking: Thinking,
    seeds: Sequence[int],
    sampling: LmSampling,
    negative: str = "",
    on_token: OnToken | None = None,
    capture: bool = False,
) -> Plan:
    """Return a song completed, and the codes of one plan for each seed.

    The thoughts are written once, with the first seed, and shared; what the user gave is never changed, but for
    a caption that is to be rewritten. Without any length the codes end where the planner ends them.
    Raises ValueError for a song that says nothing.
    """
    if not (song.caption.strip() or song.lyrics.strip()):
        raise ValueError("the song has neither caption nor lyrics; say at least what it should sound like")
    thought, blueprint = _think(planner, song, thinking, seeds[0], sampling, on_token)
    completed = _completed(song, thought, thinking)
    if not thinking.codes:
        return Plan(completed, AudioCodes(), blueprint)
    n_codes = None if completed.duration_s is None else int(completed.duration_s * CODE_RATE)
    sequences = generate_codes(
        planner.model,
        planner.ids(prompts.codes_prompt(song, completed)),
        planner.ids(prompts.codes_prompt_without(negative)),
        n_codes,
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
    given = SongSpec(language=language)
    song = _whole_song(planner, prompts.idea_prompt(sentence, instrumental), given, seed, sampling, on_token)
    return replace(song, lyrics=INSTRUMENTAL_LYRICS) if instrumental else song


def rewrite(
    planner: Planner, song: SongSpec, seed: int, sampling: LmSampling, on_token: OnToken | None = None
) -> SongSpec:
    """Return a song with caption and lyrics written out anew; every field the user gave stays."""
    written = _whole_song(planner, prompts.format_prompt(song), song, seed, sampling, on_token)
    kept = song.lyrics if song.is_instrumental or not written.lyrics else written.lyrics
    return _filled(replace(song, caption=written.caption or song.caption, lyrics=kept), written)


def understand(
    planner: Planner, codes: Sequence[int], seed: int, sampling: LmSampling, on_token: OnToken | None = None
) -> SongSpec:
    """Return the song that a sequence of codes sounds like to the planner."""
    if not codes:
        raise ValueError("there are no codes to understand; tokenize some audio or plan a song first")
    return _whole_song(planner, prompts.understand_prompt(codes), SongSpec(), seed, sampling, on_token)


def _think(
    planner: Planner,
    song: SongSpec,
    thinking: Thinking,
    seed: int,
    sampling: LmSampling,
    on_token: OnToken | None,
) -> tuple[SongSpec, str]:
    """Return what the planner thinks of a song, and its words; nothing where nothing is asked or left open."""
    fields = plan_fields(thinking.caption, thinking.language)
    asked = thinking.metadata or thinking.caption or thinking.language
    if not asked or not left_to_infer(song, fields):
        return SongSpec(), ""
    grammar = plan_grammar(planner.lexicon, song, fields)
    text = planner.write(prompts.metadata_prompt(song), grammar, seed, sampling, on_token)
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
    planner: Planner, prompt: str, given: SongSpec, seed: int, sampling: LmSampling, on_token: OnToken | None
) -> SongSpec:
    grammar = song_grammar(planner.lexicon, given, planner.max_lyric_tokens)
    text = planner.write(prompt, grammar, seed, sampling, on_token)
    return replace(prompts.parse_think(text), lyrics=prompts.parse_lyrics(text))
