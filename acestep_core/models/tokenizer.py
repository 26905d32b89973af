"""Audio codes: 25 Hz latents to 5 Hz codes and back.

Five frames are pooled by attention into one vector, six numbers of which are rounded to a few levels each
(finite scalar quantisation, Mentzer et al. 2023). The digits make one of 64,000 codes, first digit least
significant.
Source: ace-step/ACE-Step-1.5, `modeling_acestep_v15_turbo.py`; lucidrains/vector-quantize-pytorch,
`residual_fsq.py` (one quantiser, hard clamp, symmetric levels).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..constants import FRAMES_PER_CODE, FSQ_LEVELS, LATENT_CHANNELS, N_CODES
from .layers import AttentionShape, Build, alternating, cast, encoder_layers, positions

# Groups of five frames are independent. This many at once need 0.2 GB at the released size in bf16, for any length of
# song.
GROUPS_AT_ONCE = 512


def quantize(z: Tensor) -> Tensor:
    """Return codes [...] of the numbers z [..., 6], computed in float32.

    A soft clamp and then a hard one bring each number into [−1, 1], which is divided into equal steps.
    """
    levels = torch.tensor(FSQ_LEVELS, device=z.device, dtype=torch.float32)
    reach = 1 + 1 / (levels - 1)
    return nearest((reach * torch.tanh(z.float() / reach)).clamp(-1, 1))


def nearest(numbers: Tensor) -> Tensor:
    """Return the codes [...] closest to numbers [..., 6] in [−1, 1]; undoes `dequantize` exactly.

    `quantize` does not: it first applies a tanh to the output of the network.
    """
    levels = torch.tensor(FSQ_LEVELS, device=numbers.device, dtype=torch.float32)
    digits = torch.floor((levels - 1) * (numbers + 1) / 2 + 0.5).long()
    return (digits * _place_values(numbers.device)).sum(-1)


def dequantize(codes: Tensor) -> Tensor:
    """Return the six numbers in [−1, 1] that codes [...] stand for, float32 [..., 6].

    Raises ValueError for a code outside 0..63999.
    """
    if codes.numel() and (codes.min() < 0 or codes.max() >= N_CODES):
        wrong = int(codes[(codes < 0) | (codes >= N_CODES)][0])
        raise ValueError(f"audio code {wrong} is outside 0..{N_CODES - 1}; plan again or remove it")
    levels = torch.tensor(FSQ_LEVELS, device=codes.device)
    digits = codes[..., None] // _place_values(codes.device) % levels
    return 2 * digits.float() / (levels - 1) - 1


class Quantizer(nn.Module):
    """Projections into and out of the six quantised numbers; always float32, because rounding decides the digits."""

    def __init__(self, width: int, build: Build) -> None:
        super().__init__()
        exact = replace(build, dtype=torch.float32)
        self.project_in = exact.linear(width, len(FSQ_LEVELS))
        self.project_out = exact.linear(len(FSQ_LEVELS), width)

    def forward(self, x: Tensor) -> Tensor:
        """Return codes [...] of vectors x [..., width]."""
        return quantize(self.project_in(x.float()))

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return vectors [..., width] of codes [...], in dtype."""
        return self.project_out(dequantize(codes)).to(dtype)


class AttentionPooler(nn.Module):
    """One vector for each group of five frames: the output at a learned token prepended to the group."""

    def __init__(self, n_layers: int, shape: AttentionShape, build: Build) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = build.linear(shape.width, shape.width)
        self.special_token = build.parameter(1, 1, shape.width)
        self.layers = encoder_layers(alternating(n_layers), shape, build)
        self.norm = build.norm(shape.width, shape.eps)

    def forward(self, groups: Tensor) -> Tensor:
        """Return [G, width] for groups [G, 5, width]."""
        x = self.embed_tokens(groups)
        x = torch.cat((cast(self.special_token, x).expand(x.shape[0], -1, -1), x), dim=1)
        rope = positions(x, self.shape)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x[:, 0])


class AudioTokenizer(nn.Module):
    """The `tokenizer.` of a checkpoint."""

    def __init__(self, n_layers: int, shape: AttentionShape, build: Build) -> None:
        super().__init__()
        self.audio_acoustic_proj = build.linear(LATENT_CHANNELS, shape.width)
        self.attention_pooler = AttentionPooler(n_layers, shape, build)
        self.quantizer = Quantizer(shape.width, build)

    def forward(self, latents: Tensor) -> Tensor:
        """Return codes [B, K] of latents [B, 5K, 64]; the caller pads with silence to a multiple of five."""
        batch, n_frames, _ = latents.shape
        if n_frames % FRAMES_PER_CODE:
            raise ValueError(f"{n_frames} frames are not a multiple of {FRAMES_PER_CODE}; pad them with silence first")
        groups = latents.unflatten(1, (-1, FRAMES_PER_CODE)).flatten(0, 1)
        codes = [
            self.quantizer(self.attention_pooler(self.audio_acoustic_proj(some)))
            for some in groups.split(GROUPS_AT_ONCE)
        ]
        return torch.cat(codes).view(batch, -1)


class AudioDetokenizer(nn.Module):
    """The `detokenizer.` of a checkpoint: quantised vectors to 25 Hz latents, the DiT's hints."""

    def __init__(self, n_layers: int, shape: AttentionShape, build: Build) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = build.linear(shape.width, shape.width)
        self.special_tokens = build.parameter(1, FRAMES_PER_CODE, shape.width)
        self.layers = encoder_layers(alternating(n_layers), shape, build)
        self.norm = build.norm(shape.width, shape.eps)
        self.proj_out = build.linear(shape.width, LATENT_CHANNELS)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return latents [B, 5K, 64] of quantised vectors [B, K, width]."""
        batch, n_codes, _ = vectors.shape
        if not n_codes:  # a plan may be empty beside others, and CUDA's attention takes no empty batch
            return vectors.new_zeros(batch, 0, LATENT_CHANNELS)
        groups = [self._group(some) for some in vectors.flatten(0, 1).split(GROUPS_AT_ONCE)]
        return torch.cat(groups).reshape(batch, n_codes * FRAMES_PER_CODE, LATENT_CHANNELS)

    def _group(self, vectors: Tensor) -> Tensor:
        """Return latents [G, 5, 64] of quantised vectors [G, width]."""
        x = self.embed_tokens(vectors)[:, None]
        x = x + cast(self.special_tokens, x)
        rope = positions(x, self.shape)
        for layer in self.layers:
            x = layer(x, rope)
        latents: Tensor = self.proj_out(self.norm(x))
        return latents


def _place_values(device: torch.device) -> Tensor:
    return torch.cumprod(torch.tensor((1, *FSQ_LEVELS[:-1]), device=device), dim=0)
