"""The planner's decoder: prompts to audio codes for several takes at once, or to text that obeys a grammar.

A step computes what can be chosen and no more: logits of 64,000 codes instead of 217,204 tokens, of a handful
of rows where a grammar leaves a handful. Prompts are run once and shared by all takes. In the codes phase
nothing waits for the device: tokens stay on it until the end. What to say and what is allowed is for
`prompts` and `grammar`.
Source: ace-step/ACE-Step-1.5, `acestep/llm_inference.py` and its vendored nano-vllm, whose order of operations
this is: repetition penalty, guidance, mask, temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..constants import CODE_RATE, MAX_DURATION_S, N_CODES
from ..models.qwen3 import KVCache, Qwen3, Qwen3Config, Reach
from .grammar import END_OF_TURN_ID, N_TEXT_TOKENS, Choice, Done, Forced, Grammar, Text

FIRST_CODE_ID = N_TEXT_TOKENS  # code 0; what follows code 63,999 are dead rows
MAX_CODES = MAX_DURATION_S * CODE_RATE
MAX_TEXT_TOKENS = 4_096
MAX_POSITIONS = 32_768  # of the smallest planner

PROGRESS_CODES = CODE_RATE  # report once a second of music
POLL_CODES = 16  # without a target: codes between two looks at whether all takes have ended
PRESELECTED = 1_024  # top-p sorts these first, and more only where they do not suffice
GRAPH_SLOTS = 512  # how far the cache grows before a graph that reads more of it is captured

OnToken = Callable[[int, int], None]  # (tokens done, tokens in all); raise to stop


@dataclass(frozen=True)
class LmSampling:
    """How tokens are drawn. temperature 0 takes the likeliest; top_k 0, top_p 0 or 1 and min_p 0 are off.

    repetition_penalty: 1 is off, above 1 makes tokens that were generated already less likely. cfg_scale:
    how far to go from the unconditional prompt past the conditional one; up to 1 is off.
    """

    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    cfg_scale: float = 2.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "cfg_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")
        for name in ("top_p", "min_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {getattr(self, name)}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}; 1 is off")

    @property
    def is_guided(self) -> bool:
        """Tell whether the unconditional prompt plays a part."""
        return self.cfg_scale > 1


def cache_bytes(config: Qwen3Config, n_rows: int, n_positions: int, itemsize: int) -> int:
    """Return the size of a KVCache's buffers: keys and values, a head each, for every layer and position."""
    shape = config.shape
    return 2 * config.n_layers * n_rows * shape.n_kv_heads * n_positions * shape.head_dim * itemsize


@torch.inference_mode()
def generate_codes(
    model: Qwen3,
    cond_ids: Sequence[int],
    uncond_ids: Sequence[int],
    n_codes: int | None,
    seeds: Sequence[int],
    sampling: LmSampling,
    on_token: OnToken | None = None,
    capture: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[tuple[int, ...]]:
    """Return the codes 0..63999 that follow a prompt, one take for each seed, computed in dtype on device.

    n_codes: exactly so many; None: until the planner ends, at most MAX_CODES. A take depends on its own seed,
    not on the others (to the rounding of the device's matrix products, which may depend on the batch).
    on_token is called once a second of music.
    capture: replay each step as one CUDA graph; only for a model that is wholly on its device and whose layers
    cast nothing, because a graph goes on reading the memory it was captured with.

    Raises: ValueError for a prompt and a target that are too long together; RuntimeError for logits that are no
    numbers.
    """
    n_most = MAX_CODES if n_codes is None else n_codes
    if n_most == 0 or not seeds:
        return [() for _ in seeds]
    prompts = [cond_ids, uncond_ids] if sampling.is_guided else [cond_ids]
    _check_length(max(map(len, prompts)), n_most)
    read = [_read(model, prompt, dtype, device) for prompt in prompts]
    cache = KVCache.repeat(model.config, [cache for cache, _ in read], len(seeds), n_most - 1)
    hidden = torch.cat([hidden.expand(len(seeds), -1) for _, hidden in read])
    del read
    takes = _Takes(model, cache, sampling, _uniforms(seeds, n_most).to(device), ends=n_codes is None)
    takes.choose(hidden)
    takes.check()
    step = _Graph(takes).step if capture else takes.step
    for n_done in range(1, n_most + 1):
        if on_token is not None and (n_done % PROGRESS_CODES == 0 or n_done == n_most):
            on_token(n_done, n_most)
        if n_done == n_most or (n_codes is None and n_done % POLL_CODES == 0 and takes.have_ended()):
            break
        step()
    takes.check()
    return takes.codes()


@torch.inference_mode()
def generate_text(
    model: Qwen3,
    prompt_ids: Sequence[int],
    grammar: Grammar,
    seed: int,
    sampling: LmSampling,
    on_token: OnToken | None = None,
    max_tokens: int = MAX_TEXT_TOKENS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[int, ...]:
    """Return the token ids that a grammar lets a planner write behind a prompt, forced ones included.

    Unguided, whatever sampling says: guidance distorts text. Stops after max_tokens, wherever that is.
    Tokens whose logits nobody asks for wait, and are run together with the next one that matters.

    Raises as generate_codes does.
    """
    _check_length(len(prompt_ids), max_tokens)
    cache = KVCache(model.config, (0,), len(prompt_ids) + max_tokens, dtype, device)
    chooser = _TextChooser(model, sampling, _uniforms([seed], max_tokens).to(device))
    waiting, written = list(prompt_ids), list[int]()
    for step in _steps(grammar):
        if isinstance(step, Forced):
            waiting += step.ids
            written += step.ids
        else:
            hidden = _extend(model, waiting, cache, dtype)
            waiting = [chooser.choose(hidden, step)]
            written += waiting
            grammar.accept(waiting[0])
        if len(written) >= max_tokens:
            break
        if on_token is not None:
            on_token(len(written), max_tokens)
    return tuple(written[:max_tokens])


# From logits to tokens.


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Return classifier-free guided logits, float32: rounding them to half would be magnified by the scale."""
    return uncond.float() + scale * (cond.float() - uncond.float())


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits in which tokens that were seen (bool, same shape) are less likely."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def draw(logits: Tensor, uniforms: Tensor, sampling: LmSampling) -> Tensor:
    """Return an index [N] for each row of logits [N, V], told by its uniform number [N, 1] in (0, 1].

    The number points into the probabilities that remain, laid end to end in the order of the vocabulary. Laid
    by size, neighbours of almost equal probability would change places when something is rounded otherwise.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    least = _least_kept(probabilities, sampling)
    mass = torch.where(probabilities >= least, probabilities, 0).cumsum(-1)
    # No probability ends where it begins, so one that is 0 is never hit. NaN would end past the last one.
    return torch.searchsorted(mass, uniforms * mass[:, -1:]).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def _least_kept(probabilities: Tensor, sampling: LmSampling) -> Tensor:
    """Return the smallest probability [N, 1] that top-k, then top-p, then min-p keep; equals stay together."""
    ranked = _ranked(probabilities, sampling)
    least = sampling.min_p * probabilities.amax(-1, keepdim=True)
    if ranked is None:
        return least
    n_kept = ranked.shape[-1]
    if 0 < sampling.top_p < 1:
        total = ranked.sum(-1, keepdim=True) if sampling.top_k else 1.0
        mass_before = ranked.cumsum(-1) - ranked
        kept = (mass_before < sampling.top_p * total).sum(-1, keepdim=True)
        return torch.maximum(least, ranked.gather(-1, kept - 1))
    return torch.maximum(least, ranked[:, n_kept - 1 :])


def _ranked(probabilities: Tensor, sampling: LmSampling) -> Tensor | None:
    """Return the largest probabilities [N, n] in falling order: what top-k keeps, else as many as top-p may need."""
    n_all = probabilities.shape[-1]
    if sampling.top_k:
        return probabilities.topk(min(sampling.top_k, n_all)).values
    if not 0 < sampling.top_p < 1:
        return None
    # Exact, because it is sorted whole where the first do not suffice. To ask that of any other device
    # would stall every step, and sorting costs it little.
    if probabilities.device.type == "cpu":
        first = probabilities.topk(min(PRESELECTED, n_all)).values
        if bool((first.sum(-1) >= sampling.top_p).all()):
            return first
    return probabilities.sort(descending=True).values
