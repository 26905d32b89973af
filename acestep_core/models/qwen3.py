"""Qwen3: the text encoder, and the body of the 5 Hz planner.

A causal stack of the same layers as everywhere else, over token embeddings. The text encoder reads the
caption's last hidden states; lyrics use the embedding table alone.
Source: huggingface/transformers, `models/qwen3/modeling_qwen3.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import AttentionShape, Build, Positions, encoder_layers, positions


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes of one Qwen3; its layers see everything before them, so `shape.window` is None."""

    shape: AttentionShape
    n_layers: int
    n_tokens: int  # rows of the embedding table


class Qwen3(nn.Module):
    """A Qwen3 without a head."""

    def __init__(self, config: Qwen3Config, build: Build | None = None) -> None:
        super().__init__()
        build = build or Build()
        self.config = config
        self.embed_tokens = build.embedding(config.n_tokens, config.shape.width)
        self.layers = encoder_layers((False,) * config.n_layers, config.shape, build)
        self.norm = build.norm(config.shape.width, config.shape.eps)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return token embeddings [B, S, width] of ids [B, S], in dtype."""
        return self.embed_tokens(ids).to(dtype)

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the last hidden states [B, S, width] of ids [B, S], computed in dtype.

        Padding must stand at the right: what comes later cannot reach a real token.
        """
        x = self.embed(ids, dtype)
        at = _causal(positions(x, self.config.shape))
        for layer in self.layers:
            x = layer(x, at)
        return self.norm(x)


def _causal(at: Positions) -> Positions:
    """Return the positions with a mask that hides what comes later."""
    n_tokens = at.cos.shape[0]
    lowest = torch.finfo(at.cos.dtype).min
    mask = torch.full((n_tokens, n_tokens), lowest, dtype=at.cos.dtype, device=at.cos.device).triu(1)
    return Positions(at.cos, at.sin, mask[None, None], None)
