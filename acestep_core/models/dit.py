"""The diffusion transformer: noisy latents in, velocity out.

Two latent frames make one token. What does not change from step to step is computed outside the step:
`modulation` once per schedule, `cross_kv` once per condition.
Source: ace-step/ACE-Step-1.5, `acestep/models/{turbo,base,xl_turbo,xl_base}/modeling_*.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..constants import LATENT_CHANNELS
from .layers import Attention, AttentionShape, Build, Positions, SwiGLU, cast, key_mask, positions

PATCH_FRAMES = 2
CONTEXT_CHANNELS = 2 * LATENT_CHANNELS  # source latents, then the chunk mask
N_SINUSOIDS = 256
TIMESTEP_SCALE = 1000.0
N_MODULATIONS = 6  # shift, scale, gate of self-attention, then of the MLP

OnQueries = Callable[[Tensor], None]  # shown the queries [B, H, S, D] of a layer's cross-attention


@dataclass(frozen=True, eq=False)
class Modulation:
    """What a noise level does to the layers: embedding [N, H] and per-layer terms [N, 6, H]."""

    embedding: Tensor
    terms: Tensor

    def row(self, index: int) -> Modulation:
        """Return the modulation of one noise level, to broadcast over a batch."""
        return Modulation(self.embedding[index : index + 1], self.terms[index : index + 1])


@dataclass(frozen=True, eq=False)
class CrossKV:
    """Keys and values of the condition for every layer, each [B, Hkv, L, D], and the additive mask."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None

    def select(self, rows: Tensor) -> CrossKV:
        """Return the condition of the items `rows`, in that order."""
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        return CrossKV(tuple((k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.layers), mask)


class TimestepEmbedding(nn.Module):
    """Sinusoids of a noise level, then two projections."""

    def __init__(self, width: int, build: Build) -> None:
        super().__init__()
        self.linear_1 = build.linear(N_SINUSOIDS, width)
        self.linear_2 = build.linear(width, width)
        self.time_proj = build.linear(width, N_MODULATIONS * width)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Modulation:
        """Return the Modulation of noise levels t [N]; sinusoids in float32, the rest in dtype."""
        half = N_SINUSOIDS // 2
        steps = torch.arange(half, device=t.device, dtype=torch.float32)
        angles = TIMESTEP_SCALE * t.float()[:, None] * torch.exp(-math.log(10_000.0) / half * steps)
        sinusoids = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
        embedding = self.linear_2(F.silu(self.linear_1(sinusoids)))
        return Modulation(embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (N_MODULATIONS, -1)))


class DiTLayer(nn.Module):
    """Modulated self-attention, plain cross-attention to the condition, modulated MLP."""

    def __init__(self, shape: AttentionShape, build: Build, windowed: bool) -> None:
        super().__init__()
        self.self_attn_norm = build.norm(shape.width, shape.eps)
        self.self_attn = Attention(shape, build, windowed)
        self.cross_attn_norm = build.norm(shape.width, shape.eps)
        self.cross_attn = Attention(shape, build)
        self.mlp_norm = build.norm(shape.width, shape.eps)
        self.mlp = SwiGLU(shape.width, shape.mlp_width, build)
        self.scale_shift_table = build.parameter(1, N_MODULATIONS, shape.width)

    def forward(
        self,
        x: Tensor,
        terms: Tensor,
        rope: Positions,
        kv: tuple[Tensor, Tensor],
        mask: Tensor | None,
        on_queries: OnQueries | None = None,
    ) -> Tensor:
        terms = (cast(self.scale_shift_table, x) + terms)[:, :, None]
        shift_sa, scale_sa, gate_sa, shift_mlp, scale_mlp, gate_mlp = terms.unbind(1)
        x = torch.addcmul(x, gate_sa, self.self_attn(_modulate(self.self_attn_norm(x), shift_sa, scale_sa), rope))
        x = x + self._cross(self.cross_attn_norm(x), kv, mask, on_queries)
        return torch.addcmul(x, gate_mlp, self.mlp(_modulate(self.mlp_norm(x), shift_mlp, scale_mlp)))

    def cross_kv(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, Hkv, L, D] of condition states [B, L, width]."""
        k, v = self.cross_attn.keys_values(states)
        return k.transpose(1, 2), v.transpose(1, 2)

    def _cross(
        self, x: Tensor, kv: tuple[Tensor, Tensor], mask: Tensor | None, on_queries: OnQueries | None = None
    ) -> Tensor:
        attn = self.cross_attn
        queries = attn.queries(x).transpose(1, 2)
        if on_queries is not None:
            on_queries(queries)
        out: Tensor = attn.ops.attention(queries, *kv, mask)
        return attn.merge(out.transpose(1, 2))


class DiT(nn.Module):
    """The `decoder.` of a checkpoint."""

    def __init__(self, shape: AttentionShape, condition_width: int, windowed: Sequence[bool], build: Build) -> None:
        super().__init__()
        self.shape = shape
        n_inputs = CONTEXT_CHANNELS + LATENT_CHANNELS
        patch = {
            "kernel_size": PATCH_FRAMES,
            "stride": PATCH_FRAMES,
            "dtype": build.dtype,
            "device": build.device,
        }
        # The checkpoint names the convolutions `proj_in.1` and `proj_out.1`.
        self.proj_in = nn.Sequential(nn.Identity(), build.ops.Conv1d(n_inputs, shape.width, **patch))
        self.time_embed = TimestepEmbedding(shape.width, build)
        self.time_embed_r = TimestepEmbedding(shape.width, build)
        self.condition_embedder = build.linear(condition_width, shape.width)
        self.layers = nn.ModuleList(DiTLayer(shape, build, flag) for flag in windowed)
        self.norm_out = build.norm(shape.width, shape.eps)
        self.proj_out = nn.Sequential(nn.Identity(), build.ops.ConvTranspose1d(shape.width, LATENT_CHANNELS, **patch))
        self.scale_shift_table = build.parameter(1, 2, shape.width)

    def modulation(self, t: Tensor, dtype: torch.dtype) -> Modulation:
        """Return the Modulation of noise levels t [N], each in [0, 1].

        The second embedding is of t − r, and sampling always has r = t: its input is 0.
        """
        at_t, at_zero = self.time_embed(t, dtype), self.time_embed_r(torch.zeros_like(t[:1]), dtype)
        return Modulation(at_t.embedding + at_zero.embedding, at_t.terms + at_zero.terms)

    def cross_kv(self, states: Tensor, attention_mask: Tensor | None = None, n_layers: int | None = None) -> CrossKV:
        """Return what every layer, or the first n_layers, attends to, from packed condition states [B, L, E].

        attention_mask [B, L] is True for tokens that are not padding. The official code ignores it; hiding the padding
        keeps a take in a batch equal to the take alone, and changes nothing where no padding is.
        """
        states = self.condition_embedder(states)
        layers = tuple(layer.cross_kv(states) for layer in self.layers[:n_layers])  # type: ignore[operator]
        return CrossKV(layers, key_mask(attention_mask, states.dtype))

    def forward(self, x: Tensor, context: Tensor, modulation: Modulation, cross: CrossKV) -> Tensor:
        """Return the velocity (noise − data) as [B, T, 64].

        x [B, T, 64] is the noisy latents, context [B, T, 128] source latents and chunk mask;
        modulation has one row or B.
        """
        n_frames = x.shape[1]
        tokens = self._patches(x, context)
        rope = positions(tokens, self.shape)
        for layer, kv in zip(self.layers, cross.layers, strict=True):
            tokens = layer(tokens, modulation.terms, rope, kv, cross.mask)
        shift, scale = (cast(self.scale_shift_table, tokens) + modulation.embedding[:, None])[:, :, None].unbind(1)
        tokens = _modulate(self.norm_out(tokens), shift, scale)
        return self.proj_out(tokens.transpose(1, 2)).transpose(1, 2)[:, :n_frames]

    def attention(
        self,
        x: Tensor,
        context: Tensor,
        modulation: Modulation,
        cross: CrossKV,
        heads: Sequence[tuple[int, int]],
        keys: slice,
    ) -> Tensor:
        """Return how much every patch attends to some condition tokens, float32 [B, len(heads), n_keys, S].

        heads are (layer, head) from shallow to deep; layers below the last are not run. The share is of all
        condition tokens, those outside keys included. One head's share of all tokens exists at a time.
        """
        tokens = self._patches(x, context)
        rope = positions(tokens, self.shape)
        wanted = range(cross.layers[0][0].shape[2])[keys]
        attention = torch.empty(len(x), len(heads), len(wanted), tokens.shape[1], device=x.device)
        needed = cross.layers[: heads[-1][0] + 1]
        for index, (layer, kv) in enumerate(zip(self.layers, needed, strict=False)):
            rows = [(row, head) for row, (of, head) in enumerate(heads) if of == index]
            on_queries = partial(
                _write_attention, key=kv[0], mask=cross.mask, rows=rows, keys=keys, attention=attention
            )
            tokens = layer(tokens, modulation.terms, rope, kv, cross.mask, on_queries)
        return attention

    def _patches(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the tokens [B, ceil(T/2), width] of noisy latents and their context."""
        # An odd length gains one frame of zeros on all 192 channels.
        frames = F.pad(torch.cat((context, x), dim=-1), (0, 0, 0, x.shape[1] % PATCH_FRAMES))
        return self.proj_in(frames.transpose(1, 2)).transpose(1, 2)


def _write_attention(
    queries: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rows: Sequence[tuple[int, int]],
    keys: slice,
    attention: Tensor,
) -> None:
    """Write what some heads of queries [B, H, S, D] attend to into their rows of attention [B, rows, n_keys, S]."""
    n_sharing = queries.shape[1] // key.shape[1]  # query heads to a key head
    for row, head in rows:
        scores = queries[:, head] @ key[:, head // n_sharing].mT * queries.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + mask[:, 0]
        attention[:, row] = scores.softmax(-1, dtype=torch.float32)[..., keys].mT


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)
