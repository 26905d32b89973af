"""Scores how well finished takes sing their lyrics, in batches that fit memory.

The model attends to the lyrics once more, under the condition the takes were sampled with; for a task, in the window
of the song that the model saw.
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
from ...acestep_core.scoring.lyrics import Lyrics, TimedLine
from ...acestep_core.scoring.score import Score, Scores
from . import memory, progress
from .conditioning import Prompt
from .latents import ACESTEP_KEY, keys_of, latent_canvases, latent_plans, latent_takes
from .model import require_ours

# Larger batches are hardly faster, and the attention of every take in a batch is held in main memory.
MOST_AT_ONCE = 8
THIRD_PARTY = "which heads of this model follow the lyrics was found by a third party, not by its makers"
PLAIN = "hooks, ranges, areas and further songs of the conditioning are left out: scored by its first song alone"

OnItem = Callable[[], None]  # called after each scored plan or take


@dataclass(frozen=True, eq=False)
class SungTake:
    """What a picture of a take needs: how strongly the model attends to each lyric token over time."""

    lyrics: Lyrics
    lines: tuple[TimedLine, ...]  # the lines of the lyrics in their order, timed on the whole take
    energy: torch.Tensor  # [N tokens, F frames] of the window that was scored, 0 to 1
    start_s: float  # where the window begins in the take
    window_s: float
    duration_s: float  # of the whole take


@dataclass(frozen=True, eq=False)
class LyricScores:
    """The result for a batch of takes."""

    scores: Scores
    best: SungTake | None = None  # the take that sings its lyrics best; None where there is nothing to align
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LyricScorer:
    """A loaded model, the condition of every plan, and the heads and lyric tokens whose attention is read."""

    model: AceStep
    condition: Condition
    heads: LyricHeads
    tokens: range
    batch_size: int  # how many takes fit memory at once

    def attention(self, plans: Sequence[int], latents: torch.Tensor, t: float) -> torch.Tensor:
        """Return the attention [B, heads, N, F] of latents [B, T, 64], each under the condition of its plan."""
        index = torch.tensor(plans, device=self.condition.context.device)
        tokens, context = self.condition.tokens.select(index), self.condition.context.index_select(0, index)
        return lyric_attention(self.model, tokens, context, latents, self.tokens, t, self.heads)


def score_takes(patcher, conditioning: list, latent_in: dict) -> LyricScores:
    """Return how well takes sing the lyrics of their conditioning, and with audio codes how well each plan alone does.

    Raises ValueError for a foreign MODEL or conditioning, a broken latent, or a model whose lyric heads are unknown,
    before anything is loaded.
    """
    model = require_ours(patcher)
    prompt = Prompt.of(conditioning, latent_in["samples"].shape[-1])
    encoding = prompt.encoding
    if encoding.lyric_ids is None:
        raise ValueError('this conditioning does not tell its lyrics; make it with "ACE-Step Encode Song"')
    takes, plans = latent_takes(latent_in), latent_plans(latent_in, encoding.n_plans)
    songs, keys = latent_canvases(latent_in, encoding.task), keys_of(latent_in)
    n_takes, n_frames = songs.shape[:2]
    sung_from = tuple(plan if take is None else take.plan for take, plan in zip(takes, plans, strict=True))
    lyrics = Lyrics(encoding.lyric_ids.pieces)
    if lyrics.is_wordless:
        return LyricScores(Scores((Score(),) * n_takes, sung_from, n_frames, keys))

    heads = lyric_heads(model.diffusion_model.config, model.alignment_heads)
    start, stop = encoding.task.window if encoding.task.sources else (0, n_frames)
    windows = fit(songs[:, start:stop], stop - start, model.silence)
    n_steps = [(take.n_steps if take else 0) or PRESETS[model.variant].n_steps for take in takes]

    scorer = _load(patcher, encoding, heads, windows)
    plans_to_score = sorted(set(plans)) if any(encoding.codes.sequences) else []
    on_item = _count_items(len(plans_to_score) + n_takes)
    of_plan = _score_plans(scorer, plans_to_score, windows.shape[1], lyrics, on_item)
    of_take, best = _score_takes(scorer, plans, windows, n_steps, lyrics, on_item)

    start_s, window_s = start / FRAME_RATE, (stop - start) / FRAME_RATE
    scores = [
        score.later(start_s).extended(of_plan.get(plan, Score())) for plan, score in zip(plans, of_take, strict=True)
    ]
    lines = best.score.later(start_s).lines
    drawn = SungTake(lyrics, lines, best.energy, start_s, window_s, n_frames / FRAME_RATE)
    warnings = [*([THIRD_PARTY] if heads.third_party else ()), *([] if prompt.is_plain else [PLAIN])]
    return LyricScores(Scores(tuple(scores), sung_from, n_frames, keys), drawn, tuple(warnings))


def _load(patcher, encoding: Encoding, heads: LyricHeads, windows: torch.Tensor) -> LyricScorer:
    """Load the model with room for as many windows [B, T, 64] as fit, and return the scorer."""
    model = patcher.model
    n_takes, n_frames = windows.shape[:2]
    tokens = lyric_rows(encoding.lyric_ids)
    n_condition_tokens = encoding.n_tokens
    take_bytes = model.memory_required([1, LATENT_CHANNELS, n_frames], {ACESTEP_KEY: [[1, n_condition_tokens]]})
    take_bytes += attention_bytes(heads, 1, n_frames, n_condition_tokens, tokens)
    batch_size = max(1, min(n_takes, MOST_AT_ONCE, int(memory.room_beside(patcher) // take_bytes)))
    device = memory.load_for(patcher, batch_size * take_bytes)
    silence = model.silence.to(device, model.get_dtype_inference())
    made = condition(model.diffusion_model, encoding, silence, n_frames)
    return LyricScorer(model.diffusion_model, made, heads, tokens, batch_size)


def _score_plans(
    scorer: LyricScorer, plans: Sequence[int], n_frames: int, lyrics: Lyrics, on_item: OnItem
) -> dict[int, Score]:
    """Return the score of each plan alone, by its number. In pure noise all takes of a plan are the same."""
    scores = {}
    for first in range(0, len(plans), scorer.batch_size):
        batch = plans[first : first + scorer.batch_size]
        silence = torch.zeros(len(batch), n_frames, LATENT_CHANNELS)  # at this level nothing of it is left
        for plan, attention in zip(batch, scorer.attention(batch, silence, PURE_NOISE), strict=True):
            scores[plan] = score_planned_lyrics(attention, lyrics)
            on_item()
    return scores


def _score_takes(
    scorer: LyricScorer,
    plans: Sequence[int],
    windows: torch.Tensor,
    n_steps: Sequence[int],
    lyrics: Lyrics,
    on_item: OnItem,
) -> tuple[list[Score], LyricScore]:
    """Return the score of every take, and the best take's with its energy."""
    duration_s = windows.shape[1] / FRAME_RATE
    scores = [Score()] * len(plans)
    best: LyricScore | None = None
    for batch in _batches(n_steps, scorer.batch_size):
        t = noise_level(n_steps[batch[0]])
        attentions = scorer.attention([plans[item] for item in batch], windows[batch], t)
        for item, attention in zip(batch, attentions, strict=True):
            scored = score_lyrics(attention, lyrics, duration_s)
            scores[item] = scored.score
            if best is None or scored.score.value(LYRICS) > best.score.value(LYRICS):
                best = scored
            on_item()
    return scores, best


def _batches(n_steps: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield the numbers of takes to score together: takes of equal n_steps, which share a noise level."""
    for _, group in groupby(sorted(range(len(n_steps)), key=n_steps.__getitem__), key=n_steps.__getitem__):
        takes = list(group)
        yield from (takes[first : first + size] for first in range(0, len(takes), size))


def _count_items(n_items: int) -> OnItem:
    """Return a callback that moves the progress bar on by one of n_items, and raises when the user cancelled."""
    update, n_done = progress.of_steps(n_items), iter(range(1, n_items + 1))
    return lambda: update(next(n_done))
