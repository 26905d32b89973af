"""One press of Run on the lyric scorer: what a model hears of its lyrics in finished takes, in chunks that fit memory.

The takes are heard once more in the condition they were sampled in, a task's in the window that the model saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ...acestep_core.checkpoints.presets import PRESETS
from ...acestep_core.constants import FRAME_RATE, LATENT_CHANNELS
from ...acestep_core.models.acestep import AceStep
from ...acestep_core.models.silence import fit
from ...acestep_core.pipeline.condition import Condition, Encoding, condition
from ...acestep_core.scoring.attention import (
    PURE_NOISE,
    LyricHeads,
    attention_bytes,
    lyric_attention,
    lyric_heads,
    lyric_rows,
    noise_level,
)
from ...acestep_core.scoring.lyric_score import LYRICS, LyricScore, score_lyrics, score_planned_lyrics
from ...acestep_core.scoring.lyrics import Lyrics
from ...acestep_core.scoring.score import Score, Scores
from ..pictures.lyrics import Heat
from . import memory, progress
from .model import require_ours
from .sockets import ACESTEP_KEY, Prompt, latent_canvases, latent_rows, latent_takes

# More takes at once are hardly faster, and what was heard in all of them lies in the machine's own memory.
MOST_AT_ONCE = 8
THIRD_PARTY = "which heads of this model follow the lyrics was found by a third party, not by its makers"

Tell = Callable[[], None]  # called when one more is done


@dataclass(frozen=True, eq=False)
class Listened:
    """The scores of the takes, what to draw of the best one, and what to warn of.

    heat: None where there is nothing to align.
    """

    scores: Scores
    heat: Heat | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Ear:
    """A model that is loaded, the condition of every plan, and which heads and tokens of it to watch.

    size: how many takes fit memory at once.
    """

    model: AceStep
    condition: Condition
    heads: LyricHeads
    tokens: range
    size: int

    def attention(self, rows: Sequence[int], latents: torch.Tensor, t: float) -> torch.Tensor:
        """Return the attention [B, heads, N, F] of latents [B, T, 64] in the conditions of these rows."""
        index = torch.tensor(rows, device=self.condition.context.device)
        tokens, context = self.condition.tokens.select(index), self.condition.context.index_select(0, index)
        return lyric_attention(self.model, tokens, context, latents, self.tokens, t, self.heads)


def listen(patcher, conditioning: list, latent_in: dict) -> Listened:
    """Return how takes follow the lyrics of a conditioning; where it has codes, what those foretell as well.

    Raises ValueError for a foreign MODEL or conditioning, a broken latent, or a model whose heads nobody knows,
    before anything is loaded.
    """
    model = require_ours(patcher)
    encoding = _encoding(conditioning)
    takes, plans = latent_takes(latent_in), latent_rows(latent_in)
    rows = (plans % encoding.n_plans).tolist()
    songs = latent_canvases(latent_in, encoding.task)
    n_takes, n_frames = songs.shape[:2]
    sung_from = tuple(take.plan for take in takes) or tuple(rows)
    lyrics = Lyrics(encoding.lyric_ids.pieces)
    if lyrics.is_wordless:
        return Listened(Scores((Score(),) * n_takes, sung_from, n_frames))

    heads = lyric_heads(model.diffusion_model.config, model.alignment_heads)
    start, stop = encoding.task.window if encoding.task.sources else (0, n_frames)
    windows = fit(songs[:, start:stop], stop - start, model.silence)
    n_steps = [take.n_steps or PRESETS[model.variant].n_steps for take in takes]
    n_steps = n_steps or [PRESETS[model.variant].n_steps] * n_takes

    ear = _ear(patcher, encoding, heads, windows)
    foretelling = sorted(set(rows)) if any(encoding.codes.sequences) else []
    tell = _counting(len(foretelling) + n_takes)
    foretold = _foretell(ear, foretelling, windows.shape[1], lyrics, tell)
    heard, best = _hear(ear, rows, windows, n_steps, lyrics, tell)

    start_s, heard_s = start / FRAME_RATE, (stop - start) / FRAME_RATE
    scores = [score.later(start_s).extended(foretold.get(row, Score())) for row, score in zip(rows, heard, strict=True)]
    lines = best.score.later(start_s).lines
    heat = Heat(lyrics, lines, best.energy, start_s, heard_s, n_frames / FRAME_RATE)
    return Listened(Scores(tuple(scores), sung_from, n_frames), heat, (THIRD_PARTY,) if heads.third_party else ())


def _encoding(conditioning: list) -> Encoding:
    encoding = Prompt.of(conditioning).encoding
    if encoding is None or encoding.lyric_ids is None:
        raise ValueError('this conditioning does not tell its lyrics; make it with "ACE-Step Encode Song"')
    return encoding


def _ear(patcher, encoding: Encoding, heads: LyricHeads, windows: torch.Tensor) -> Ear:
    """Return what to listen with to windows [B, T, 64], the model loaded with room for as many as fit."""
    model = patcher.model
    n_takes, n_frames = windows.shape[:2]
    tokens = lyric_rows(encoding.lyric_ids)
    n_condition_tokens = encoding.n_tokens
    one = model.memory_required([1, LATENT_CHANNELS, n_frames], {ACESTEP_KEY: [[1, n_condition_tokens]]})
    one += attention_bytes(heads, 1, n_frames, n_condition_tokens, tokens)
    size = max(1, min(n_takes, MOST_AT_ONCE, int(memory.room_beside(patcher) // one)))
    device = memory.load_for(patcher, size * one)
    like = windows[:1].to(device, model.get_dtype_inference())
    made = condition(model.diffusion_model, encoding, model.silence, n_frames, like)
    return Ear(model.diffusion_model, made, heads, tokens, size)


def _foretell(ear: Ear, rows: Sequence[int], n_frames: int, lyrics: Lyrics, tell: Tell) -> dict[int, Score]:
    """Return what plans foretell, by their number. In pure noise all takes of a plan are one."""
    found = {}
    for first in range(0, len(rows), ear.size):
        chunk = rows[first : first + ear.size]
        nothing = torch.zeros(len(chunk), n_frames, LATENT_CHANNELS)
        for row, attention in zip(chunk, ear.attention(chunk, nothing, PURE_NOISE), strict=True):
            found[row] = score_planned_lyrics(attention, lyrics)
            tell()
    return found


def _hear(
    ear: Ear, rows: Sequence[int], windows: torch.Tensor, n_steps: Sequence[int], lyrics: Lyrics, tell: Tell
) -> tuple[list[Score], LyricScore]:
    """Return the score of every take, and all that was heard in the best."""
    duration_s = windows.shape[1] / FRAME_RATE
    scores = [Score()] * len(rows)
    best: LyricScore | None = None
    for chunk in _chunks(n_steps, ear.size):
        t = noise_level(n_steps[chunk[0]])
        for item, attention in zip(chunk, ear.attention([rows[i] for i in chunk], windows[chunk], t), strict=True):
            heard = score_lyrics(attention, lyrics, duration_s)
            scores[item] = heard.score
            if best is None or heard.score.value(LYRICS) > best.score.value(LYRICS):
                best = heard
            tell()
    return scores, best


def _chunks(n_steps: Sequence[int], size: int) -> Iterator[list[int]]:
    """Return the numbers of takes to hear at once: those of as many steps, which are noised alike."""
    for _, group in groupby(sorted(range(len(n_steps)), key=n_steps.__getitem__), key=n_steps.__getitem__):
        alike = list(group)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def _counting(n_all: int) -> Tell:
    """Return what shows in the progress bar that one more of n_all is done, and raises when the user cancelled."""
    update, n_done = progress.of_steps(n_all), iter(range(1, n_all + 1))
    return lambda: update(next(n_done))
