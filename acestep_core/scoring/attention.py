"""The DiT's attention to the lyrics: how much a few heads attend from each frame to each lyric token.

One forward pass over finished latents, apart from sampling, and only as deep as the last head that is needed. The
checkpoint says which heads follow the lyrics; `alignment` interprets their attention.
Source: ace-step/ACE-Step-1.5, `acestep/handler.py` (get_lyric_timestamp, get_lyric_score).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.acestep import AceStep, AceStepConfig
from ..models.conditioner import Tokens
from ..models.dit import PATCH_FRAMES
from ..song.tokens import LyricIds

NOISE_SEED = 42
PURE_NOISE = 1.0  # at this level nothing of the take is left: the attention depends on codes and text only
CONFIG_KEY = "lyric_alignment_layers_config"


@dataclass(frozen=True)
class LyricHeads:
    """The cross-attention heads that follow the lyrics."""

    pairs: tuple[tuple[int, int], ...]  # (layer, head), counted from 0, from shallow to deep
    third_party: bool = False  # found by others than the model's makers

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"{CONFIG_KEY} names no head; remove it from config.json or download that file again")
        if any(earlier >= later for earlier, later in pairwise(self.pairs)):
            raise ValueError(f"lyric heads must go from shallow to deep, each once, got {self.pairs}")

    @property
    def n_layers(self) -> int:
        """Return how many layers must be run to reach all heads."""
        return self.pairs[-1][0] + 1


# (layers, heads of a layer) of a released decoder -> its heads.
KNOWN_HEADS = {
    (24, 16): LyricHeads(((2, 6), (3, 10), (3, 11), (4, 3), (5, 8), (5, 9), (6, 8))),
    # Source: `alignment-config.h` of a third party's C++ port, which says it is XL's config.json; the official
    # `lyric_alignment_test.py` has layers 3, 4, 5 and 7 of it, layer 6 stands nowhere else.
    (32, 32): LyricHeads(
        ((3, 18), (3, 27), (4, 22), (5, 5), (5, 6), (5, 7), (6, 2), (6, 12), (6, 13), (7, 20), (7, 21)),
        third_party=True,
    ),
}


def lyric_heads(config: AceStepConfig, table: Mapping[str, Sequence[int]] | str | None = None) -> LyricHeads:
    """Return the lyric heads of a checkpoint: its own table, else those known for its size.

    table: `lyric_alignment_layers_config`, layer numbers to heads, from config.json or, as text, from metadata.

    Raises: ValueError for heads that the model does not have, or if none are known for its size.
    """
    size = (len(config.windowed_layers), config.decoder.n_heads)
    if table:
        return _heads_in(table, *size)
    if size not in KNOWN_HEADS:
        known = " and ".join(f"{n_layers} layers of {n_heads} heads" for n_layers, n_heads in KNOWN_HEADS)
        raise ValueError(
            f"which heads follow the lyrics is known for {known}, this model has {size[0]} layers of {size[1]}; "
            f'add "{CONFIG_KEY}" to its config.json'
        )
    return KNOWN_HEADS[size]


def lyric_rows(lyrics: LyricIds) -> range:
    """Return which condition tokens are the words of the lyrics.

    Packing puts lyric tokens first, so a lyric token has the same index among the condition tokens.
    """
    return lyrics.words


def noise_level(n_steps: int) -> float:
    """Return the noise level at which a take is scored: the width of one of its n_steps sampling steps."""
    if n_steps < 1:
        raise ValueError(f"a take is sampled in at least one step, got {n_steps}; use the steps it was made with")
    return 1 / n_steps


def attention_bytes(heads: LyricHeads, n_takes: int, n_frames: int, n_condition_tokens: int, rows: range) -> int:
    """Return the memory that lyric_attention needs on top of the weights and activations of a forward pass.

    The result of all heads, and the scores, masked scores and softmax of the head in progress.
    """
    result = len(heads.pairs) * len(rows)
    n_patches = -(-n_frames // PATCH_FRAMES)
    return n_takes * n_patches * (result + 3 * n_condition_tokens) * torch.float32.itemsize


@torch.inference_mode()
def lyric_attention(
    model: AceStep,
    tokens: Tokens,
    context: Tensor,
    latents: Tensor,
    rows: range,
    t: float,
    heads: LyricHeads,
    seed: int = NOISE_SEED,
) -> Tensor:
    """Return the share of attention that each head gives each lyric token, float32 [B, heads, tokens, frames] on CPU.

    tokens, context [B, T, 128]: the packed condition of each take from `pipeline.condition`, in the model's dtype and
    on its device. latents [B, T, 64]: the finished takes. rows: from lyric_rows. t: the level the takes are noised to,
    all with the same noise, so that a take's score does not depend on its batch. A frame here is two latent frames.

    Raises: ValueError for lyrics longer than the condition, or latents that are not finite or of another length.
    """
    _check(tokens, context, latents, rows)
    like = context
    # Drawn on the CPU, or scores would differ between devices.
    noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(seed)).to(like)
    x = t * noise + (1 - t) * latents.to(like)
    cross = model.decoder.cross_kv(
        tokens.states, None if tokens.attention_mask.all() else tokens.attention_mask, heads.n_layers
    )
    modulation = model.decoder.modulation(torch.tensor([t], device=like.device), like.dtype)
    keys = slice(rows.start, rows.stop)
    attention: Tensor = model.decoder.attention(x, context, modulation, cross, heads.pairs, keys)
    if not attention.isfinite().all():
        name = str(like.dtype).removeprefix("torch.")
        raise RuntimeError(f"the model's attention is NaN or infinite in {name}; load it with another weight dtype")
    return attention.cpu()


def _heads_in(table: Mapping[str, Sequence[int]] | str, n_layers: int, n_heads: int) -> LyricHeads:
    pairs = _parsed(table)
    for layer, head in pairs:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ValueError(
                f"{CONFIG_KEY} names head {head} of layer {layer}, the model has {n_layers} layers of {n_heads} "
                "heads; use the config.json that came with it"
            )
    return LyricHeads(tuple(sorted(set(pairs))))


def _parsed(table: Mapping[str, Sequence[int]] | str) -> list[tuple[int, int]]:
    try:
        layers: Any = json.loads(table) if isinstance(table, str) else table
        return [(int(layer), int(head)) for layer, heads in layers.items() for head in heads]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f'{CONFIG_KEY} must map layers to lists of heads, like {{"3": [10, 11]}}, got {table!r}; '
            "use the config.json that came with the model"
        ) from None


def _check(tokens: Tokens, context: Tensor, latents: Tensor, rows: range) -> None:
    if not tokens.states.shape[0] == context.shape[0] == latents.shape[0]:
        raise ValueError(
            f"{latents.shape[0]} takes do not go with {tokens.states.shape[0]} conditions; use one for each take"
        )
    if context.shape[1] != latents.shape[1]:
        raise ValueError(
            f"the latent has {latents.shape[1]} frames, its condition {context.shape[1]}; connect the latent that "
            "was sampled with it"
        )
    if rows.stop > tokens.states.shape[1]:
        raise ValueError(
            f"the lyrics end at token {rows.stop}, the conditioning has {tokens.states.shape[1]}; connect the "
            "conditioning these lyrics were encoded in"
        )
    broken = (~latents.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"take {broken[0] + 1} of the latents holds NaN or infinity; sample it again")
