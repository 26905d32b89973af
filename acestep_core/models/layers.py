"""The blocks every ACE-Step transformer is made of: attention, MLP, rotary positions, window masks.

DiT, lyric encoder, timbre encoder, tokenizer, detokenizer and Qwen3 all stack these. Module names equal
the official checkpoint's keys. Weights live in layers built from injected operations (`Ops`), so a host
can load, offload and quantise them; ours is `TorchOps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A class (or namespace) with Linear, Conv1d, ConvTranspose1d, RMSNorm, Embedding and attention.
Ops = Any


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √D + mask) v as [B, H, Sq, D]; k and v may have fewer heads than q.

    mask is additive and broadcasts to [B, H, Sq, Sk].
    """
    if q.shape[2] == 1 and q.shape[1] != k.shape[1] and (mask is None or mask.shape[1] == 1):
        # Single-token step: fold the query heads of a key head into the query axis, so that no keys are repeated.
        grouped = q.reshape(k.shape[0], k.shape[1], -1, k.shape[3])
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(q.shape)
    if mask is not None and q.device.type == "cuda":
        # CUDA's fused kernels support a mask or grouped-query heads, not both; the fallback materialises all scores,
        # so repeat the key heads.
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for heads in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


class RMSNorm(nn.RMSNorm):
    """RMSNorm; on the CPU, where torch has no fused kernel, an equivalent that allocates no x²."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.rsqrt(norm * norm / x.shape[-1] + self.eps) * self.weight


class TorchOps:
    """The default operations: torch's own layers and attention."""

    Linear = nn.Linear
    Conv1d = nn.Conv1d
    ConvTranspose1d = nn.ConvTranspose1d
    RMSNorm = RMSNorm
    Embedding = nn.Embedding
    attention = staticmethod(scaled_dot_product_attention)


@dataclass(frozen=True)
class Build:
    """How to make a layer: the operations, and the dtype and device of its weights."""

    ops: Ops = TorchOps
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def linear(self, n_in: int, n_out: int, bias: bool = True) -> Any:
        return self.ops.Linear(n_in, n_out, bias=bias, dtype=self.dtype, device=self.device)

    def norm(self, width: int, eps: float = 1e-6) -> Any:
        return self.ops.RMSNorm(width, eps=eps, dtype=self.dtype, device=self.device)

    def embedding(self, n_rows: int, width: int) -> Any:
        return self.ops.Embedding(n_rows, width, dtype=self.dtype, device=self.device)

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return an unfilled parameter. Cast it at use: a host under memory pressure leaves it off-device."""
        return nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device), requires_grad=False)


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one transformer's layers. `window` is the reach of its sliding layers in tokens, if it has any."""

    width: int
    mlp_width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float = 1e-6
    rope_theta: float = 1e6
    window: int | None = 128


@dataclass(frozen=True, eq=False)
class Positions:
    """What attention needs to know of a sequence: rotary angles, and the masks of both layer types.

    cos, sin: [S, D/2], or [B, S, D/2] where sequences count from different tokens. full: additive, broadcasts
    to [B, H, S, keys], or None where every token is seen.
    band: additive [B·n, 1, b, b + 2·window] for `windowed_attention`, or None where the window
    reaches everything.
    """

    cos: Tensor
    sin: Tensor
    full: Tensor | None
    band: Tensor | None


@dataclass(frozen=True, eq=False)
class Past:
    """What one layer keeps of earlier tokens: keys and values [B, Hkv, n_slots, D].

    slots [S]: where the tokens at hand go. n_visible: how many slots attention reads, counted from the first.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    n_visible: int

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, S, Hkv, D] to their slots, and return what is visible then, [B, n_visible, Hkv, D]."""
        self.keys.index_copy_(2, self.slots, k.transpose(1, 2))
        self.values.index_copy_(2, self.slots, v.transpose(1, 2))
        return self.keys[:, :, : self.n_visible].transpose(1, 2), self.values[:, :, : self.n_visible].transpose(1, 2)


def positions(x: Tensor, shape: AttentionShape, attention_mask: Tensor | None = None) -> Positions:
    """Return the Positions of tokens x [B, S, width], counted from 0; attention_mask [B, S] is False for padding."""
    n_tokens = x.shape[1]
    angles = rope_angles(torch.arange(n_tokens, device=x.device), shape)
    band = None
    if shape.window is not None and n_tokens > shape.window + 1:
        band = _band_mask(n_tokens, shape.window, x, attention_mask)
    return Positions(angles.cos().to(x.dtype), angles.sin().to(x.dtype), key_mask(attention_mask, x.dtype), band)


def rope_angles(places: Tensor, shape: AttentionShape) -> Tensor:
    """Return the rotary angles [..., D/2] of integer places [...], float32."""
    exponents = torch.arange(0, shape.head_dim, 2, device=places.device, dtype=torch.float32) / shape.head_dim
    return places[..., None].float() * shape.rope_theta**-exponents


def key_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the additive mask [B, 1, 1, S] that hides padding, or None without attention_mask [B, S]."""
    return None if attention_mask is None else additive_mask(attention_mask[:, None, None, :].bool(), dtype)


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where allowed (bool) and the lowest finite number elsewhere: with -inf, a row of padding becomes NaN."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def rotate(x: Tensor, rope: Positions) -> Tensor:
    """Return x [B, S, H, D] turned by its position's angles; the halves of D are the pairs."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rope.cos[..., None, :], rope.sin[..., None, :]
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, band: Tensor, window: int, ops: Ops) -> Tensor:
    """Return attention of each token to those at most `window` away, as [B, S, H, D].

    q [B, S, H, D], k and v [B, S, Hkv, D]. Queries are cut into blocks of window/2; a block sees
    its own keys and one window on either side, so cost and memory grow linearly with S.
    """
    batch, n_tokens, n_heads, head_dim = q.shape
    block = window // 2
    n_blocks = -(-n_tokens // block)
    tail = n_blocks * block - n_tokens

    def blocks_with_halo(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, 0, window, window + tail))
        views = padded.unfold(1, block + 2 * window, block)  # [B, n, Hkv, D, b + 2·window], no copy
        return views.permute(0, 1, 2, 4, 3).flatten(0, 1)

    q = F.pad(q, (0, 0, 0, 0, 0, tail)).view(batch * n_blocks, block, n_heads, head_dim)
    out = ops.attention(q.transpose(1, 2), blocks_with_halo(k), blocks_with_halo(v), band)
    return out.transpose(1, 2).reshape(batch, n_blocks * block, n_heads, head_dim)[:, :n_tokens]


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys, over itself or a condition."""

    def __init__(self, shape: AttentionShape, build: Build, windowed: bool = False) -> None:
        super().__init__()
        self.shape, self.ops, self.windowed = shape, build.ops, windowed
        width, head_dim = shape.width, shape.head_dim
        self.q_proj = build.linear(width, shape.n_heads * head_dim, bias=False)
        self.k_proj = build.linear(width, shape.n_kv_heads * head_dim, bias=False)
        self.v_proj = build.linear(width, shape.n_kv_heads * head_dim, bias=False)
        self.o_proj = build.linear(shape.n_heads * head_dim, width, bias=False)
        self.q_norm = build.norm(head_dim, shape.eps)
        self.k_norm = build.norm(head_dim, shape.eps)

    def forward(self, x: Tensor, rope: Positions, past: Past | None = None) -> Tensor:
        """Return self-attention of x [B, S, width], windowed where the layer is; past: over earlier tokens too."""
        q = rotate(self.queries(x), rope)
        k, v = self.keys_values(x)
        k = rotate(k, rope)
        if past is not None:
            k, v = past.extend(k, v)
        if self.windowed and rope.band is not None and self.shape.window is not None:
            return self.merge(windowed_attention(q, k, v, rope.band, self.shape.window, self.ops))
        out = self.ops.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rope.full)
        return self.merge(out.transpose(1, 2))

    def queries(self, x: Tensor) -> Tensor:
        """Return normalised queries [B, S, H, D]."""
        return self._normed(self.q_norm, self.q_proj(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised keys and plain values, both [B, S, Hkv, D]."""
        v = self.v_proj(x).unflatten(-1, (-1, self.shape.head_dim))
        return self._normed(self.k_norm, self.k_proj(x)), v

    def merge(self, out: Tensor) -> Tensor:
        """Return heads [B, S, H, D] mixed back to [B, S, width]."""
        return self.o_proj(out.flatten(2))

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.unflatten(-1, (-1, self.shape.head_dim)))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x))"""

    def __init__(self, width: int, mlp_width: int, build: Build) -> None:
        super().__init__()
        self.gate_proj = build.linear(width, mlp_width, bias=False)
        self.up_proj = build.linear(width, mlp_width, bias=False)
        self.down_proj = build.linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)).mul_(self.up_proj(x)))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer, shared by the lyric, timbre, pooler, detokenizer and Qwen3 stacks."""

    def __init__(self, shape: AttentionShape, build: Build, windowed: bool) -> None:
        super().__init__()
        self.input_layernorm = build.norm(shape.width, shape.eps)
        self.self_attn = Attention(shape, build, windowed)
        self.post_attention_layernorm = build.norm(shape.width, shape.eps)
        self.mlp = SwiGLU(shape.width, shape.mlp_width, build)

    def forward(self, x: Tensor, rope: Positions, past: Past | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, past)
        return x + self.mlp(self.post_attention_layernorm(x))


# Of one EncoderLayer at its widest moment, for each token: residual stream, normed copy, queries, keys, values,
# the heads' output and its projection, and a spare; gate, up and their product.
LAYER_COPIES, LAYER_MLP_COPIES = 8, 3


def layer_bytes(shape: AttentionShape, n_tokens: int, itemsize: int) -> int:
    """Return the bytes of activations that one EncoderLayer holds for n_tokens, at most."""
    return n_tokens * (LAYER_COPIES * shape.width + LAYER_MLP_COPIES * shape.mlp_width) * itemsize


def encoder_layers(windowed: Sequence[bool], shape: AttentionShape, build: Build) -> nn.ModuleList:
    """Return one EncoderLayer for each flag."""
    return nn.ModuleList(EncoderLayer(shape, build, flag) for flag in windowed)


def alternating(n_layers: int) -> tuple[bool, ...]:
    """Return the released checkpoints' pattern: even layers windowed, odd layers full."""
    return tuple(index % 2 == 0 for index in range(n_layers))


def cast(parameter: Tensor, like: Tensor) -> Tensor:
    """Return a bare parameter on the device and in the dtype of the activations it meets."""
    return parameter.to(device=like.device, dtype=like.dtype)


def _band_mask(n_tokens: int, window: int, x: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the additive mask of `windowed_attention`: in reach, inside the sequence, not padding."""
    block = window // 2
    n_blocks = -(-n_tokens // block)
    tail = n_blocks * block - n_tokens
    if attention_mask is None:
        attention_mask = torch.ones(x.shape[0], n_tokens, dtype=torch.bool, device=x.device)
    keys = F.pad(attention_mask.bool(), (window, window + tail)).unfold(1, block + 2 * window, block)
    query = torch.arange(block, device=x.device)[:, None]
    key = torch.arange(block + 2 * window, device=x.device) - window
    allowed = ((key - query).abs() <= window) & keys[:, :, None, :]
    return additive_mask(allowed.flatten(0, 1)[:, None], x.dtype)
