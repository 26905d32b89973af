"""How likely answers to a question are for the planner: their log-probability and the ranks of their tokens.

The question is read once; all answers follow it in one sequence, each attending to the question and itself only.
Logits are computed for a slice of the vocabulary at a time. `score` decides what to ask.
Source: ace-step/ACE-Step-1.5, `acestep/test_time_scaling.py`, which runs each pair on its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.layers import Past, Positions, additive_mask, layer_bytes
from ..models.qwen3 import KVCache, Qwen3, Qwen3Config, Reach
from .decode import cache_bytes

TOP_K = 10
VOCABULARY_SLICE = 8_192
PMI_SCALE = 0.1


@dataclass(frozen=True)
class Likelihood:
    """How likely one answer is."""

    log_prob: float  # mean natural log-probability of its tokens
    recall: float  # mean of 1, 0.9, … 0.1 for tokens the planner ranked first, second, … tenth, 0 for others


def pmi_score(conditional: float, unconditional: float, scale: float = PMI_SCALE) -> float:
    """Return 0 to 1: how much likelier an answer is with a condition than without it.

    Both are mean log-probabilities. 0.5 means no difference; a smaller scale makes small differences count more.
    """
    if not scale > 0:
        raise ValueError(f"the scale of a PMI score must be above 0, got {scale}; 0.1 is usual")
    # A difference of several hundred is certainty, and exp would overflow.
    return 1 / (1 + math.exp(min(-(conditional - unconditional) / scale, 700.0)))


def likelihood_bytes(config: Qwen3Config, n_question: int, n_answers: int, itemsize: int) -> int:
    """Return the memory that `likelihoods` needs at most, without the weights; n_answers: tokens of all answers."""
    shape, n_tokens = config.shape, n_question + n_answers
    cache = cache_bytes(config, 1, n_tokens, itemsize)
    # Reading: activations of one layer and the mask. Judging: a slice of the head and its logits.
    n_read = max(n_question, n_answers)
    read = layer_bytes(shape, n_read, itemsize) + n_read * n_tokens * itemsize
    judged = VOCABULARY_SLICE * (shape.width * itemsize + 3 * n_answers * torch.float32.itemsize)
    return cache + read + judged


@torch.inference_mode()
def likelihoods(
    model: Qwen3,
    question: Sequence[int],
    answers: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Likelihood, ...]:
    """Return the likelihood of each answer's token ids after a question's, over the whole vocabulary.

    Raises: ValueError for an empty question or answer.
    """
    if not question or not all(answers):
        raise ValueError("a likelihood needs a question and answers of at least one token each")
    hidden = _read(model, question, answers, dtype, device)
    targets = torch.tensor([token for answer in answers for token in answer], device=device)
    log_probs, ranks = _judge(model, hidden, targets)
    recalls = (1 - (ranks - 1) / TOP_K).clamp_min(0)
    sizes = [len(answer) for answer in answers]
    pairs = zip(log_probs.split(sizes), recalls.split(sizes), strict=True)
    return tuple(Likelihood(float(logs.mean()), float(recall.mean())) for logs, recall in pairs)


def _read(
    model: Qwen3,
    question: Sequence[int],
    answers: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Return the hidden states [n, width] that predict the tokens of all answers, one after another."""
    fed = [answer[:-1] for answer in answers]  # the last token predicts nothing that is asked
    n_fed = sum(map(len, fed))
    cache = KVCache(model.config, (0,), len(question) + n_fed, dtype, device)
    ids = torch.tensor([question], device=device)
    end = model.extend(model.embed(ids, dtype), cache.next(len(question)))[0, -1:]
    if not n_fed:
        return end.expand(len(answers), -1)
    ids = torch.tensor([[token for answer in fed for token in answer]], device=device)
    behind = model.extend(model.embed(ids, dtype), _side_by_side(cache, len(question), [*map(len, fed)]))[0]
    return torch.cat([row for answer in behind.split([*map(len, fed)]) for row in (end, answer)])


def _side_by_side(cache: KVCache, n_read: int, sizes: Sequence[int]) -> Reach:
    """Return the reach of several sequences in one row, each following the same n_read tokens.

    They use consecutive slots of the cache, but all positions count from n_read, and none attends to another.
    """
    answer_of = torch.repeat_interleave(torch.tensor(sizes)).to(cache.slots.device)
    places = torch.cat([torch.arange(size) for size in sizes]).to(cache.slots.device) + n_read
    later = torch.ones(len(answer_of), len(answer_of), dtype=torch.bool, device=answer_of.device).triu(1)
    own = (answer_of[:, None] == answer_of) & ~later
    visible = torch.cat((own.new_ones(len(own), n_read), own), dim=1)
    mask = additive_mask(visible[None, None], cache.cos.dtype)
    at = Positions(cache.cos[places], cache.sin[places], mask, None)
    slots = cache.slots[n_read:]
    return Reach(at, tuple(Past(keys, values, slots, cache.n_slots) for keys, values in cache.layers))


def _judge(model: Qwen3, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability and the rank, from 1, of the target [n] after each hidden state [n, width]."""
    distinct, which = targets.unique(return_inverse=True)
    own = _logits(model, hidden, distinct).gather(1, which[:, None])
    mass = torch.full_like(own, -math.inf)
    n_before = torch.zeros_like(which)
    for start in range(0, model.config.n_tokens, VOCABULARY_SLICE):
        ids = torch.arange(start, min(start + VOCABULARY_SLICE, model.config.n_tokens), device=targets.device)
        logits = _logits(model, hidden, ids)
        # A target must not rank before itself, however its product was rounded in this slice.
        here = ((targets >= start) & (targets < start + len(ids))).nonzero()
        logits[here, targets[here] - start] = own[here, 0]
        mass = torch.logaddexp(mass, logits.logsumexp(1, keepdim=True))
        n_before += (logits > own).sum(1, dtype=torch.int32)  # in int64, the default, ten times as slow
    return (own - mass)[:, 0], n_before + 1


def _logits(model: Qwen3, hidden: Tensor, ids: Tensor) -> Tensor:
    return (hidden @ model.head_rows(ids, hidden.dtype).mT).float()
