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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..constants import CODE_RATE, MAX_DURATION_S, N_CODES
from ..models.layers import layer_bytes
from ..models.qwen3 import KVCache, Qwen3, Qwen3Config, Reach
from .grammar import END_OF_TURN_ID, N_TEXT_TOKENS, Choice, Done, Forced, Grammar, Text

FIRST_CODE_ID = N_TEXT_TOKENS  # code 0; what follows code 63,999 are dead rows
MAX_CODES = MAX_DURATION_S * CODE_RATE
MAX_TEXT_TOKENS = 4_096
MAX_POSITIONS = 32_768  # of the smallest planner

PROGRESS_CODES = CODE_RATE  # report once a second of music
POLL_CODES = 16  # without a target: codes between two looks at whether all takes have ended
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


def text_bytes(config: Qwen3Config, prompt_ids: Sequence[int], itemsize: int) -> int:
    """Return the memory that generate_text takes behind a prompt at most, beside the weights.

    Raises ValueError for a prompt that is too long.
    """
    _check_length(prompt_ids, MAX_TEXT_TOKENS)
    cache = cache_bytes(config, 1, len(prompt_ids) + MAX_TEXT_TOKENS, itemsize)
    return cache + _passing_bytes(config, len(prompt_ids), 1, N_TEXT_TOKENS, itemsize)


def codes_bytes(
    config: Qwen3Config, prompts: Sequence[Sequence[int]], n_codes: int, n_takes: int, itemsize: int
) -> int:
    """Return the memory that generate_codes takes behind its prompts (one, or two when guided) at most.

    Raises ValueError for a prompt and codes that are too long together.
    """
    for prompt in prompts:
        _check_length(prompt, n_codes)
    n_prompt, n_rows = max(map(len, prompts)), len(prompts) * n_takes
    read = cache_bytes(config, len(prompts), n_prompt, itemsize)
    shared = cache_bytes(config, n_rows, n_prompt + n_codes, itemsize)
    return read + shared + _passing_bytes(config, n_prompt, n_rows, N_CODES + 1, itemsize)


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
    max_codes: int = MAX_CODES,
) -> list[tuple[int, ...]]:
    """Return the codes 0..63999 that follow a prompt, one take for each seed, computed in dtype on device.

    n_codes: exactly so many; None: until the planner ends, at most max_codes. A take depends on its own seed,
    not on the others (to the rounding of the device's matrix products, which may depend on the batch).
    on_token is called once a second of music.
    capture: replay each step as one CUDA graph; only for a model that is wholly on its device and whose layers
    cast nothing, because a graph goes on reading the memory it was captured with.

    Raises: ValueError for a prompt and a target that are too long together; RuntimeError for logits that are no
    numbers.
    """
    n_most = max_codes if n_codes is None else n_codes
    if n_most == 0 or not seeds:
        return [() for _ in seeds]
    prompts = [cond_ids, uncond_ids] if sampling.is_guided else [cond_ids]
    for prompt in prompts:
        _check_length(prompt, n_most)
    cache, hidden = _read(model, prompts, len(seeds), n_most - 1, dtype, device)
    takes = _Takes(model, cache, sampling, _uniforms(seeds, n_most).to(device), may_end=n_codes is None)
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
    Forced tokens are batched with the next sampled one.

    Raises as generate_codes does.
    """
    _check_length(prompt_ids, max_tokens)
    cache = KVCache(model.config, (0,), len(prompt_ids) + max_tokens, dtype, device)
    writer = _Writer(model, sampling, _uniforms([seed], max_tokens).to(device))
    waiting = list(prompt_ids)
    written: list[int] = []
    while not isinstance(step := grammar.step(), Done):
        if isinstance(step, Forced):
            waiting += step.ids
            written += step.ids
        else:
            token = writer.choose(_run(model, waiting, cache), step)
            grammar.accept(token)
            waiting = [token]
            written.append(token)
        if on_token is not None:
            on_token(min(len(written), max_tokens), max_tokens)
        if len(written) >= max_tokens:
            break
    return tuple(written[:max_tokens])


# From logits to tokens.


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Return cond [N, V] taken scale times as far from uncond as it is."""
    return uncond + scale * (cond - uncond)


def penalize(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Return logits in which tokens that were used (bool, same shape) are less likely."""
    return torch.where(used, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def draw(logits: Tensor, uniforms: Tensor, sampling: LmSampling) -> Tensor:
    """Return an index [N] for each row of logits [N, V], chosen by its uniform number [N, 1] in (0, 1].

    The number points into the probabilities that are allowed, laid end to end in the order of the vocabulary. Laid
    by size, neighbours of almost equal probability would change places whenever something is rounded otherwise.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    allowed = probabilities >= _threshold(probabilities, sampling)
    mass = torch.where(allowed, probabilities, 0).cumsum(-1)
    # The first index whose cumulative mass reaches the number: above 0, so it skips probability 0; at most the total,
    # so it stays in range.
    return torch.searchsorted(mass, uniforms * mass[:, -1:]).squeeze(-1)


def _threshold(probabilities: Tensor, sampling: LmSampling) -> Tensor:
    """Return the smallest probability [N, 1] that top-k, then top-p, and min-p keep; equals stay together.

    Top-p drops from below while what it drops amounts to 1 − p at most, and never the largest.
    """
    least = sampling.min_p * probabilities.amax(-1, keepdim=True)
    top_p = sampling.top_p or 1.0
    if top_p == 1 and not sampling.top_k:
        return least
    rising = _sorted(probabilities)[:, -sampling.top_k :]  # all of them where top_k is 0
    dropped = (rising.cumsum(-1) <= (1 - top_p) * rising.sum(-1, keepdim=True)).sum(-1, keepdim=True)
    return torch.maximum(least, rising.gather(-1, dropped.clamp_max(rising.shape[-1] - 1)))


def _sorted(numbers: Tensor) -> Tensor:
    """Return numbers in rising order along the last axis."""
    if numbers.device.type == "cpu":  # numpy sorts 64,000 of them 16 times as fast as torch: 0.3 ms, not 5
        return torch.from_numpy(np.sort(numbers.numpy(), axis=-1))
    return numbers.sort(-1).values


# Text, one sequence under a grammar.


class _Writer:
    """Chooses the tokens of a text, from logits of the rows that a step of its grammar leaves."""

    def __init__(self, model: Qwen3, sampling: LmSampling, uniforms: Tensor) -> None:
        self.model, self.sampling = model, sampling
        self.uniforms = iter(uniforms)
        self.used = torch.zeros(1, model.config.n_tokens, dtype=torch.bool, device=uniforms.device)
        self._text_head: Tensor | None = None
        self._banned: dict[Text, Tensor] = {}

    def choose(self, hidden: Tensor, step: Choice | Text) -> int:
        """Return the token that follows a hidden state [1, width]."""
        logits = self._logits(hidden, step)
        _check_finite(bool(logits.isfinite().all()), hidden.dtype)
        if self.sampling.repetition_penalty != 1:
            used = self.used[:, step.ids if isinstance(step, Choice) else slice(N_TEXT_TOKENS)]
            logits = penalize(logits, used, self.sampling.repetition_penalty)
        if isinstance(step, Text):
            logits.index_fill_(1, self._banned_by(step, logits.device), -math.inf)
        greedy = isinstance(step, Choice) and step.greedy
        index = int(logits.argmax() if greedy else draw(logits, next(self.uniforms), self.sampling))
        token = step.ids[index] if isinstance(step, Choice) else index
        self.used[0, token] = True
        return token

    def _logits(self, hidden: Tensor, step: Choice | Text) -> Tensor:
        if isinstance(step, Choice):
            return (hidden @ head_columns(self.model, step.ids, hidden)).float()
        if self._text_head is None:  # many texts never need it
            self._text_head = head_columns(self.model, range(N_TEXT_TOKENS), hidden)
        return (hidden @ self._text_head).float()

    def _banned_by(self, text: Text, device: torch.device) -> Tensor:
        if text not in self._banned:
            self._banned[text] = torch.tensor(text.banned, dtype=torch.long, device=device)
        return self._banned[text]


# Codes, all takes at once.


class _Takes:
    """Takes that grow by one code a step, in tensors that stay where they are on the device.

    Tokens are counted from the first that is live: codes 0..63999, and the end of the turn where takes may end.
    """

    def __init__(self, model: Qwen3, cache: KVCache, sampling: LmSampling, uniforms: Tensor, may_end: bool) -> None:
        like = cache.layers[0][0]
        live = [*range(FIRST_CODE_ID, FIRST_CODE_ID + N_CODES), *([END_OF_TURN_ID] if may_end else [])]
        n_codes, n_takes, _ = uniforms.shape
        self.model, self.cache, self.sampling, self.uniforms = model, cache, sampling, uniforms
        self.head = head_columns(model, live, like)
        self.embeddings = self.head if model.lm_head is None else _columns(model.embed, live, like)
        self.chosen = torch.zeros(n_codes, n_takes, dtype=torch.long, device=like.device)
        self.last = self.chosen.new_zeros(n_takes)
        self.n_chosen = self.chosen.new_zeros(1)
        self.used = torch.zeros(n_takes, len(live), dtype=torch.bool, device=like.device)
        self.sane = torch.ones(n_takes, dtype=torch.bool, device=like.device)

    def step(self) -> None:
        """Choose the next code of every take."""
        self.follow(self.cache.next(1))

    def follow(self, reach: Reach) -> None:
        """Run the last codes at their place in the cache, and choose the next."""
        x = self.embeddings.index_select(1, self.last).T
        both = torch.cat((x, x)) if self.sampling.is_guided else x
        self.choose(self.model.extend(both[:, None], reach)[:, 0])

    def choose(self, hidden: Tensor) -> None:
        """Choose a code for every take from hidden states [rows, width], the conditional ones first."""
        # float32 before guidance, which magnifies what half precision rounds.
        logits = (hidden @ self.head).float()
        cond, *uncond = logits.split(len(self.last))
        if self.sampling.repetition_penalty != 1:
            cond = penalize(cond, self.used, self.sampling.repetition_penalty)
        logits = guide(cond, uncond[0], self.sampling.cfg_scale) if uncond else cond
        self.sane &= logits.amax(-1).isfinite()
        self.last.copy_(draw(logits, self.uniforms.index_select(0, self.n_chosen)[0], self.sampling))
        self.chosen.index_copy_(0, self.n_chosen, self.last[None])
        self.used.scatter_(1, self.last[:, None], True)
        self.n_chosen += 1

    def check(self) -> None:
        """Raise RuntimeError where logits were no numbers. Waits for the device."""
        _check_finite(bool(self.sane.all()), self.head.dtype)

    def have_ended(self) -> bool:
        """Tell whether every take has ended its turn. Waits for the device."""
        return bool((self.chosen == N_CODES).any(0).all())

    def codes(self) -> list[tuple[int, ...]]:
        """Return the codes of every take up to where it ended. Waits for the device."""
        takes = self.chosen[: int(self.n_chosen)].T.tolist()
        return [tuple(take[: take.index(N_CODES)] if N_CODES in take else take) for take in takes]


class _Graph:
    """A step of takes as one CUDA graph: thousands of launches become one.

    A graph reads a fixed stretch of the cache, so it is captured anew each time the cache has outgrown it.
    Never run on a GPU: this pack's tests have none, and follow a step only as far as a pretended one goes.
    """

    def __init__(self, takes: _Takes) -> None:
        self.takes = takes
        self.before = takes.cache.n_filled - 1  # the slot of a code is this and how many were chosen with it
        self.n_visible = 0
        self.stream = torch.cuda.Stream()
        self.reported = torch.cuda.Event()

    def step(self) -> None:
        """Choose the next code of every take."""
        cache = self.takes.cache
        if cache.n_filled >= self.n_visible:
            self.n_visible = min(cache.n_slots, cache.n_filled + GRAPH_SLOTS)
            self.graph = self._capture()
        self.graph.replay()
        cache.n_filled += 1
        if cache.n_filled % PROGRESS_CODES == 0:
            # The host is never more than two reports ahead: progress is true, and a cancel is felt.
            self.reported.synchronize()
            self.reported.record()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Return the graph of one step, after one that loads kernels and is taken back.

        Both run on one side stream. cuBLAS keeps a workspace for each stream: made by the first step, it is
        ordinary memory; made within the graph, it would belong to that graph and be gone before the next.
        """
        advanced = (self.takes.last, self.takes.n_chosen, self.takes.used)
        before = [tensor.clone() for tensor in advanced]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._follow()
        torch.cuda.current_stream().wait_stream(self.stream)
        for tensor, value in zip(advanced, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Other threads of a host may allocate or ask for free memory meanwhile; by default that breaks a capture.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self._follow()
        return graph

    def _follow(self) -> None:
        self.takes.follow(self.takes.cache.reach(self.takes.n_chosen + self.before, self.n_visible))


# What both need.


def head_columns(model: Qwen3, ids: Sequence[int], like: Tensor) -> Tensor:
    """Return the head's part for some tokens [width, n], where `like` is and in its dtype.

    It is looked up once through the model's own table, which a host may keep elsewhere or quantised. As columns,
    because a CPU multiplies a handful of rows by them twice as fast.
    """
    return _columns(model.head_rows, ids, like)


def _columns(look_up: Callable[[Tensor, torch.dtype], Tensor], ids: Sequence[int], like: Tensor) -> Tensor:
    return look_up(torch.tensor(ids, device=like.device), like.dtype).T.contiguous()


def _read(
    model: Qwen3,
    prompts: Sequence[Sequence[int]],
    n_rows: int,
    n_more: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[KVCache, Tensor]:
    """Return a cache with n_rows of each prompt and room for n_more tokens, and every row's last hidden state.

    Each prompt is run once, whatever the number of rows.
    """
    caches = [KVCache(model.config, (0,), len(prompt), dtype, device) for prompt in prompts]
    hidden = [_run(model, prompt, cache) for prompt, cache in zip(prompts, caches, strict=True)]
    return KVCache.repeat(model.config, caches, n_rows, n_more), torch.cat(hidden).repeat_interleave(n_rows, 0)


def _run(model: Qwen3, ids: Sequence[int], cache: KVCache) -> Tensor:
    """Return the hidden state [1, width] behind the last of ids, which come next in a cache of one row."""
    like = cache.layers[0][0]
    x = model.embed(torch.tensor([ids], device=like.device), like.dtype)
    hidden: Tensor = model.extend(x, cache.next(len(ids)))
    return hidden[:, -1]


def _uniforms(seeds: Sequence[int], n: int) -> Tensor:
    """Return uniform numbers [n, N, 1] in (0, 1], a column from each seed's own generator."""
    columns = [1 - torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(columns, dim=1)


def _passing_bytes(config: Qwen3Config, n_prompt: int, n_rows: int, n_live: int, itemsize: int) -> int:
    """Return the memory beside the caches: activations and mask of a prompt, the live head, logits and their draw.

    The head counts twice: as it is looked up, and as columns.
    """
    width = config.shape.width
    read = layer_bytes(config.shape, n_prompt, itemsize) + n_prompt * n_prompt * itemsize
    return read + 2 * n_live * width * itemsize + 8 * n_rows * n_live * torch.float32.itemsize


def _check_length(prompt: Sequence[int], n_more: int) -> None:
    if len(prompt) + n_more > MAX_POSITIONS:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens and {n_more} to follow exceed the planner's {MAX_POSITIONS}; "
            "shorten the lyrics or the song"
        )


def _check_finite(finite: bool, dtype: torch.dtype) -> None:
    if finite:
        return
    if dtype == torch.float16:
        raise RuntimeError("the planner's logits overflow in fp16; load it with dtype bf16, or fp32 on older cards")
    name = str(dtype).removeprefix("torch.")
    raise RuntimeError(f"the planner's logits are no numbers in {name}; its file looks damaged, download it again")
