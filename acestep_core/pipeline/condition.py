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
    FRAME_RATE,
    FRAMES_PER_CODE,
    MAX_DURATION_S,
    REFERENCE_FRAMES,
    frames_for,
)
from ..models.acestep import AceStep, chunk_context
from ..models.conditioner import Tokens
from ..models.silence import fit, tile
from ..song.tokens import LyricIds
from ..types import AudioCodes, SongSpec, in_turn
from .tasks import TEXT2MUSIC, Task

# Codes may miss the length of what they are for by this much: less than a beat, and silence fills it.
CODES_TOLERANCE = CODE_RATE


@dataclass(frozen=True, eq=False)
class Encoding:
    """What to make: a song as the text encoder read it, its codes, references and task.

    For P plans: as many as there are sequences of codes, rows of text or rows of the task.
    """

    text: Tokens  # [1 or P, L, D] states of the caption under the task's instruction
    text_to_music: Tokens  # the same under the text2music instruction, for the steps after `strength`
    lyric: Tokens  # [1, L, D] embeddings of the lyrics' tokens
    lyric_ids: LyricIds | None = None  # those tokens, where they are known
    codes: AudioCodes = field(default_factory=AudioCodes)
    timbre: Tensor | None = None  # [R, n, 64] latents of recordings to sound like; None = silence
    task: Task = TEXT2MUSIC

    def __post_init__(self) -> None:
        _check_together(self.codes, self.task)

    @property
    def n_plans(self) -> int:
        """Return how many plans a batch of takes is spread over."""
        return max(self.codes.n_plans, self.text.states.shape[0], self.task.n_rows)

    @property
    def n_tokens(self) -> int:
        """Return how long the packed condition will be; conditions of one length can share a forward."""
        return self.n_tokens_when(plain=False)

    def n_tokens_when(self, plain: bool) -> int:
        """Return how long the packed condition is before or, plain, after the text2music condition takes over."""
        text = self.text_to_music if plain else self.text
        n_timbre = 1 if self.timbre is None else self.timbre.shape[0]
        return text.states.shape[1] + self.lyric.states.shape[1] + n_timbre

    def turns_plain_at(self, n_steps: int) -> int:
        """Return the step from which the text2music condition, without codes or source, takes over."""
        return int(n_steps * self.task.strength)


@dataclass(frozen=True, eq=False)
class Condition:
    """What the DiT is conditioned on: packed tokens of P plans, and context latents [P, T, 128]."""

    tokens: Tokens
    context: Tensor


def n_frames_of(song: SongSpec, codes: AudioCodes, task: Task = TEXT2MUSIC) -> int:
    """Return the latent length of a generation: the task's, the codes', else the song's, else two minutes.

    Raises ValueError for codes longer than the model plays, of another length than the task's, or not for it at all.
    """
    _check_together(codes, task)
    n_codes = max(map(len, codes.sequences), default=0)
    if task.sources:
        wanted = -(-task.window_frames // FRAMES_PER_CODE)
        if n_codes and abs(n_codes - wanted) > CODES_TOLERANCE:
            raise ValueError(
                f"the codes last {n_codes / CODE_RATE:g} s, the {task.name} {task.window_frames / FRAME_RATE:g} s; "
                'make them as long with "ACE-Step Edit Codes"'
            )
        return task.window_frames
    if task.n_frames:
        return task.n_frames
    if not n_codes:
        return frames_for(song.duration_s or DEFAULT_DURATION_S)
    if n_codes > MAX_DURATION_S * CODE_RATE:
        raise ValueError(f"the codes last {n_codes / CODE_RATE:g} s, at most {MAX_DURATION_S} s fit; cut them")
    return max(n_codes * FRAMES_PER_CODE, frames_for(0))


def condition(model: AceStep, encoding: Encoding, silence: Tensor, n_frames: int, plain: bool = False) -> Condition:
    """Return the Condition of an encoding for n_frames, in the dtype and on the device of silence [1, n, 64].

    The silence belongs to the checkpoint. plain: as text2music, without codes or source.
    """
    return Condition(
        packed_tokens(model, encoding, silence, plain), context_latents(model, encoding, silence, n_frames, plain)
    )


def packed_tokens(model: AceStep, encoding: Encoding, silence: Tensor, plain: bool = False) -> Tokens:
    """Return the tokens [P, L, D] that every frame attends to, in the dtype and on the device of silence [1, n, 64]."""
    n_plans = encoding.n_plans
    text = encoding.text_to_music if plain else encoding.text
    # Without a recording the timbre is silence encoded by the VAE, as in training, not zeros.
    timbre = tile(silence, REFERENCE_FRAMES) if encoding.timbre is None else encoding.timbre.to(silence)
    plans = torch.arange(n_plans, device=silence.device)
    tokens: Tokens = model.encoder(
        _for_plans(text, n_plans, silence),
        _for_plans(encoding.lyric, n_plans, silence),
        timbre.repeat(n_plans, 1, 1),
        plans.repeat_interleave(timbre.shape[0]),
    )
    return tokens


def context_latents(model: AceStep, encoding: Encoding, silence: Tensor, n_frames: int, plain: bool = False) -> Tensor:
    """Return source latents and mask [P, n_frames, 128], in the dtype and on the device of silence [1, n, 64]."""
    mask = encoding.task.mask_in_window(n_frames)
    inside = torch.ones(1, n_frames, dtype=torch.bool) if mask is None else mask > 0
    inside = _for_rows(inside.to(silence.device), encoding.n_plans)
    source = tile(silence, n_frames) if plain else _source(model, encoding, silence, n_frames, inside)
    return chunk_context(_for_rows(source, encoding.n_plans), inside)


def _check_together(codes: AudioCodes, task: Task) -> None:
    """Raise ValueError for codes that a task does not take, or for as many plans as do not pair up with its rows."""
    if not codes.n_plans:
        return
    if task.rule.codes == "refused":
        raise ValueError(f"{task.name} takes no audio codes, they would replace its source; disconnect them")
    if max(codes.n_plans, task.n_rows) % codes.n_plans or max(codes.n_plans, task.n_rows) % task.n_rows:
        raise ValueError(
            f"{codes.n_plans} plans do not go with {task.n_rows} sources or tracks; use one of either, or as many"
        )


def _source(model: AceStep, encoding: Encoding, silence: Tensor, n_frames: int, inside: Tensor) -> Tensor:
    """Return source latents [1 or more, n_frames, 64]: hints of codes, a task's recordings, or silence.

    inside [P, n_frames]: where each plan generates.
    """
    task = encoding.task
    hints = hints_of(model, encoding.codes, silence, n_frames)
    if hints is not None and task.rule.codes == "win":
        return hints
    source = task.source_in_window(n_frames, silence).to(silence)
    if task.rule.hints:
        return fit(model.detokenize(model.tokenize(source, silence), silence.dtype), n_frames, silence)
    if task.rule.erases:
        new = tile(silence, n_frames) if hints is None else hints
        return torch.where(inside[..., None], _for_rows(new, len(inside)), _for_rows(source, len(inside)))
    return source


def hints_of(model: AceStep, codes: AudioCodes, silence: Tensor, n_frames: int) -> Tensor | None:
    """Return the hints of codes [plans, n_frames, 64], None without codes; where they end early, silence follows."""
    if not codes.n_plans:
        return None
    plans = [torch.tensor([sequence], dtype=torch.long, device=silence.device) for sequence in codes.sequences]
    return torch.cat([fit(model.detokenize(plan, silence.dtype), n_frames, silence) for plan in plans])


def _for_rows(x: Tensor, n_rows: int) -> Tensor:
    """Return the items of x in turn until there are n_rows."""
    return in_turn(x, torch.arange(n_rows, device=x.device))


def _for_plans(tokens: Tokens, n_plans: int, like: Tensor) -> Tokens:
    tokens = tokens.to(like.device, like.dtype)
    if tokens.states.shape[0] == n_plans:
        return tokens
    return tokens.select(torch.arange(n_plans, device=like.device) % tokens.states.shape[0])
