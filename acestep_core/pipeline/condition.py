"""From an encoded song to what the DiT is conditioned on: source latents, mask and packed tokens.

`Encoding` is made before any checkpoint is known and travels between nodes; `condition` joins it with a
checkpoint's silence, timbre encoder and detokenizer, once per generation.
Source: ace-step/ACE-Step-1.5, `acestep/handler.py` and `prepare_condition` in `modeling_acestep_v15_turbo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..constants import (
    CODE_RATE,
    DEFAULT_DURATION_S,
    FRAMES_PER_CODE,
    MAX_DURATION_S,
    REFERENCE_FRAMES,
    frames_for,
)
from ..models.acestep import AceStep, chunk_context, fit, tile
from ..models.conditioner import Tokens
from ..text import LyricIds
from ..types import AudioCodes, SongSpec


@dataclass(frozen=True, eq=False)
class Encoding:
    """A song as the text encoder read it, for one or several plans. Holds no silence and no checkpoint.

    text: states of the caption under the task's instruction, [1 or P, L, D]. text_to_music: the same under
    the text2music instruction, which takes over when a strength below 1 drops the codes. lyric: token
    embeddings [1, L, D], and lyric_ids their tokens where known. codes_strength: part of the steps that
    follow the codes. timbre: latents [R, n, 64] of recordings to sound like. cover: latents [1, n, 64] to
    follow in coarse, as codes are.
    """

    text: Tokens
    text_to_music: Tokens
    lyric: Tokens
    lyric_ids: LyricIds | None = None
    codes: AudioCodes = field(default_factory=AudioCodes)
    codes_strength: float = 1.0
    timbre: Tensor | None = None
    cover: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.codes_strength <= 1:
            raise ValueError(f"codes strength must be 0 to 1, got {self.codes_strength:g}")

    @property
    def n_plans(self) -> int:
        """Return how many plans a batch of takes is spread over."""
        return max(self.codes.n_plans, self.text.states.shape[0])

    def drops_codes_at(self, n_steps: int) -> int:
        """Return the step from which the model goes on without the codes."""
        return int(n_steps * self.codes_strength)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the DiT is conditioned on: packed tokens of P plans, and context latents [P, T, 128]."""

    tokens: Tokens
    context: Tensor


def n_frames_of(song: SongSpec, codes: AudioCodes) -> int:
    """Return the latent length of a generation: the codes' own, else the song's, else two minutes.

    Raises ValueError for codes longer than the model plays.
    """
    if not codes.n_plans:
        return frames_for(song.duration_s or DEFAULT_DURATION_S)
    n_codes = max(map(len, codes.sequences))
    if n_codes > MAX_DURATION_S * CODE_RATE:
        raise ValueError(f"the codes last {n_codes / CODE_RATE:g} s, at most {MAX_DURATION_S} s fit; cut them")
    return max(n_codes * FRAMES_PER_CODE, frames_for(0))


def condition(
    model: AceStep, encoding: Encoding, silence: Tensor, n_frames: int, like: Tensor, plain: bool = False
) -> Condition:
    """Return the Condition of an encoding for n_frames, in the dtype and on the device of `like`.

    silence [1, n, 64] is the checkpoint's. plain: without codes, as text to music.
    """
    silence = silence.to(like)
    n_plans = encoding.n_plans
    text = encoding.text_to_music if plain else encoding.text
    # Without a recording the timbre is that of silence; zeros would be a sound the encoder never met.
    timbre = tile(silence, REFERENCE_FRAMES) if encoding.timbre is None else encoding.timbre.to(like)
    plans = torch.arange(n_plans, device=like.device)
    tokens = model.encoder(
        _for_plans(text, n_plans, like),
        _for_plans(encoding.lyric, n_plans, like),
        timbre.repeat(n_plans, 1, 1),
        plans.repeat_interleave(timbre.shape[0]),
    )
    source = _source(model, encoding, silence, n_frames, plain).expand(n_plans, -1, -1)
    return Condition(tokens, chunk_context(source, source.new_ones(source.shape[:2])))


def _source(model: AceStep, encoding: Encoding, silence: Tensor, n_frames: int, plain: bool) -> Tensor:
    """Return source latents [1 or P, n_frames, 64]: hints of codes or of a recording, else silence.

    Hints that end early go on with silence.
    """
    if plain:
        return tile(silence, n_frames)
    if encoding.codes.n_plans:
        plans = [torch.tensor([sequence], device=silence.device) for sequence in encoding.codes.sequences]
    elif encoding.cover is not None:
        plans = [model.tokenize(encoding.cover.to(silence), silence)]
    else:
        return tile(silence, n_frames)
    return torch.cat([fit(model.detokenize(codes, silence.dtype), n_frames, silence) for codes in plans])


def _for_plans(tokens: Tokens, n_plans: int, like: Tensor) -> Tokens:
    tokens = tokens.to(like.device, like.dtype)
    if tokens.states.shape[0] == n_plans:
        return tokens
    return tokens.select(torch.zeros(n_plans, dtype=torch.long, device=like.device))
