"""The condition encoder: text, lyrics and timbre become one packed sequence the DiT attends to.

Runs once per generation. Owns packing and its mask; the null condition lives on the whole model.
Source: ace-step/ACE-Step-1.5, `acestep/models/turbo/modeling_acestep_v15_turbo.py` and `xl_turbo/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..constants import LATENT_CHANNELS
from .layers import AttentionShape, Build, cast, encoder_layers, positions


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token states [B, L, D] and its attention_mask [B, L], False for padding."""

    states: Tensor
    attention_mask: Tensor

    def __post_init__(self) -> None:
        if self.states.shape[:2] != self.attention_mask.shape:
            raise ValueError(
                f"states {tuple(self.states.shape)} and mask {tuple(self.attention_mask.shape)} differ in shape"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tokens:
        """Return the tokens on a device, the states in dtype."""
        return Tokens(self.states.to(device, dtype), self.attention_mask.to(device))

    def select(self, rows: Tensor) -> Tokens:
        """Return the items `rows`, in that order."""
        return Tokens(self.states.index_select(0, rows), self.attention_mask.index_select(0, rows))


def pack(first: Tokens, second: Tokens) -> Tokens:
    """Return both sequences joined, tokens first in their order, padding last."""
    states = torch.cat((first.states, second.states), dim=1)
    attention_mask = torch.cat((first.attention_mask, second.attention_mask), dim=1).bool()
    order = attention_mask.int().argsort(dim=1, descending=True, stable=True)
    return Tokens(states.gather(1, order[:, :, None].expand_as(states)), attention_mask.gather(1, order))


class LyricEncoder(nn.Module):
    """Contextualises lyric token embeddings."""

    def __init__(self, text_width: int, windowed: Sequence[bool], shape: AttentionShape, build: Build) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = build.linear(text_width, shape.width)
        self.layers = encoder_layers(windowed, shape, build)
        self.norm = build.norm(shape.width, shape.eps)

    def forward(self, lyric: Tokens) -> Tokens:
        x = self.embed_tokens(lyric.states)
        rope = positions(x, self.shape, None if lyric.attention_mask.all() else lyric.attention_mask)
        for layer in self.layers:
            x = layer(x, rope)
        return Tokens(self.norm(x), lyric.attention_mask)


class TimbreEncoder(nn.Module):
    """Sums up a reference recording in one vector: the output at the first position.

    With `class_token` (XL) a learned token stands there; without it (2B) the first latent frame does,
    though the file holds the token all the same.
    """

    def __init__(self, windowed: Sequence[bool], shape: AttentionShape, build: Build, class_token: bool) -> None:
        super().__init__()
        self.shape, self.class_token = shape, class_token
        self.embed_tokens = build.linear(LATENT_CHANNELS, shape.width)
        self.layers = encoder_layers(windowed, shape, build)
        self.norm = build.norm(shape.width, shape.eps)
        self.special_token = build.parameter(1, 1, shape.width)

    def forward(self, reference: Tensor) -> Tensor:
        """Return [R, width] for R reference clips [R, T, 64]."""
        x = self.embed_tokens(reference)
        if self.class_token:
            x = torch.cat((cast(self.special_token, x).expand(x.shape[0], -1, -1), x), dim=1)
        rope = positions(x, self.shape)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x[:, 0])


class ConditionEncoder(nn.Module):
    """The `encoder.` of a checkpoint."""

    def __init__(
        self,
        text_width: int,
        lyric_windowed: Sequence[bool],
        timbre_windowed: Sequence[bool],
        shape: AttentionShape,
        build: Build,
        class_token: bool,
    ) -> None:
        super().__init__()
        self.text_projector = build.linear(text_width, shape.width, bias=False)
        self.lyric_encoder = LyricEncoder(text_width, lyric_windowed, shape, build)
        self.timbre_encoder = TimbreEncoder(timbre_windowed, shape, build, class_token)

    def forward(self, text: Tokens, lyric: Tokens, reference: Tensor, item_of: Tensor) -> Tokens:
        """Return the packed condition: lyric, timbre, text tokens of each item, then padding.

        text and lyric: the text encoder's states [B, L, width]. reference [R, T, 64]: clips of all items;
        item_of [R]: the item each belongs to.
        """
        timbre = _by_item(self.timbre_encoder(reference), item_of, text.states.shape[0])
        text = Tokens(self.text_projector(text.states), text.attention_mask)
        return pack(pack(self.lyric_encoder(lyric), timbre), text)


def _by_item(vectors: Tensor, item_of: Tensor, n_items: int) -> Tokens:
    """Return the clips' vectors [R, width] as each item's own tokens, in order of appearance."""
    counts = torch.bincount(item_of, minlength=n_items)
    attention_mask = torch.arange(int(counts.max()), device=item_of.device) < counts[:, None]
    states = vectors.new_zeros(*attention_mask.shape, vectors.shape[-1])
    states[attention_mask] = vectors[item_of.argsort(stable=True)]
    return Tokens(states, attention_mask)
