"""Qwen3: the text encoder, and the body of the 5 Hz planner.

A causal stack of the same layers as everywhere else, over token embeddings. The text encoder reads the
caption's last hidden states; lyrics use the embedding table alone. The planner decodes with a KV
cache.
Source: huggingface/transformers, `models/qwen3/modeling_qwen3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import AttentionShape, Build, Past, Positions, additive_mask, encoder_layers, positions, rope_angles


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes of one Qwen3; its layers see everything before them, so `shape.window` is None."""

    shape: AttentionShape
    n_layers: int
    n_tokens: int  # rows of the embedding table
    own_head: bool = False  # False: the embedding table is the head too


class Qwen3(nn.Module):
    """Qwen3 without its LM head; callers multiply by the rows of the head they need."""

    def __init__(self, config: Qwen3Config, build: Build | None = None) -> None:
        super().__init__()
        build = build or Build()
        self.config = config
        self.embed_tokens = build.embedding(config.n_tokens, config.shape.width)
        self.layers = encoder_layers((False,) * config.n_layers, config.shape, build)
        self.norm = build.norm(config.shape.width, config.shape.eps)
        # A table to look rows up in, like the embedding: hosts cast what is looked up, wherever the table is.
        self.lm_head = build.embedding(config.n_tokens, config.shape.width) if config.own_head else None

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return token embeddings [B, S, width] of ids [B, S], in dtype."""
        return self.embed_tokens(ids).to(dtype)

    def head_rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows [n, width] of the head whose products with a hidden state are the logits of ids [n]."""
        return self.embed(ids, dtype) if self.lm_head is None else self.lm_head(ids).to(dtype)

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the last hidden states [B, S, width] of ids [B, S], computed in dtype.

        Padding must stand at the right: later positions cannot reach earlier tokens.
        """
        x = self.embed(ids, dtype)
        rope = _causal(positions(x, self.config.shape))
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)

    def extend(self, x: Tensor, reach: Reach) -> Tensor:
        """Return the last hidden states [B, S, width] of embeddings x, which come next in a cache's rows."""
        for layer, past in zip(self.layers, reach.layers, strict=True):
            x = layer(x, reach.rope, past)
        return self.norm(x)


@dataclass(frozen=True, eq=False)
class Reach:
    """Where the next tokens of a cache's rows stand, and what each layer shows them."""

    rope: Positions
    layers: tuple[Past, ...]


class KVCache:
    """Keys and values of sequences that grow together, one a row, in buffers that never move.

    Rows end at the same slot, so that one index says where the next token goes. A row shorter than the longest
    begins in a later slot: its first ones are hidden from it, and its positions count from 0 where it begins.
    """

    def __init__(
        self, config: Qwen3Config, starts: Sequence[int], n_slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = config.shape
        size = (len(starts), shape.n_kv_heads, n_slots, shape.head_dim)

        def buffer() -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)  # not empty: hidden times NaN is NaN

        self.layers = tuple((buffer(), buffer()) for _ in range(config.n_layers))
        self.slots = torch.arange(n_slots, device=device)
        self.starts = torch.tensor(starts, device=device)[:, None]
        angles = rope_angles(self.slots, shape)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.mask = additive_mask(self.slots >= self.starts, dtype)[:, None, None, :]
        self.n_filled = 0

    @classmethod
    def repeat(cls, config: Qwen3Config, prompts: Sequence[KVCache], n_rows: int, n_more: int) -> KVCache:
        """Return a cache whose rows are n_rows times each prompt (a cache of one row), with n_more free slots."""
        like = prompts[0].layers[0][0]
        longest = max(prompt.n_filled for prompt in prompts)
        starts = [longest - prompt.n_filled for prompt in prompts for _ in range(n_rows)]
        cache = cls(config, starts, longest + n_more, like.dtype, like.device)
        cache.n_filled = longest
        for index, prompt in enumerate(prompts):
            rows = slice(index * n_rows, (index + 1) * n_rows)
            slots = slice(longest - prompt.n_filled, longest)
            for ours, theirs in zip(cache.layers, prompt.layers, strict=True):
                for buffer, filled in zip(ours, theirs, strict=True):
                    buffer[rows, :, slots] = filled[:, :, : prompt.n_filled]
        return cache

    @property
    def n_slots(self) -> int:
        """Return how many tokens the longest row can hold."""
        return len(self.slots)

    def next(self, n_tokens: int) -> Reach:
        """Return the reach of the next tokens of every row, and count them as filled.

        Raises ValueError when the cache has no room for them.
        """
        start, end = self.n_filled, self.n_filled + n_tokens
        if end > self.n_slots:
            raise ValueError(f"the planner's cache holds {self.n_slots} tokens, {end} were asked for; ask for fewer")
        self.n_filled = end
        slots = self.slots[start:end]
        mask = self.mask[..., :end] if n_tokens == 1 else self._causal(slots, end)
        return self._reach(slots, mask, end)

    def reach(self, slots: Tensor, n_visible: int) -> Reach:
        """Return the reach of tokens at slots [S] that only the device knows, all below n_visible."""
        return self._reach(slots, self._causal(slots, n_visible), n_visible)

    def _causal(self, slots: Tensor, n_visible: int) -> Tensor:
        """Return the mask [B, 1, S, n_visible] that hides what comes later, and slots before a row's start."""
        begun = self.mask[..., :n_visible]
        return torch.where(self.slots[:n_visible] <= slots[:, None], begun, torch.finfo(begun.dtype).min)

    def _reach(self, slots: Tensor, mask: Tensor, n_visible: int) -> Reach:
        places = slots - self.starts
        rope = Positions(self.cos[places], self.sin[places], mask, None)
        return Reach(rope, tuple(Past(keys, values, slots, n_visible) for keys, values in self.layers))


def _causal(rope: Positions) -> Positions:
    """Return the positions with a mask that hides what comes later."""
    n_tokens = rope.cos.shape[0]
    lowest = torch.finfo(rope.cos.dtype).min
    mask = torch.full((n_tokens, n_tokens), lowest, dtype=rope.cos.dtype, device=rope.cos.device).triu(1)
    return Positions(rope.cos, rope.sin, mask[None, None], None)
