"""The whole music model of one checkpoint file: DiT, condition encoder, tokenizer, detokenizer.

Owns the configuration and the assembly; each part is in its own module. Module names are the official
checkpoint's keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..constants import FRAMES_PER_CODE
from .conditioner import ConditionEncoder
from .dit import DiT
from .layers import AttentionShape, Build, alternating
from .tokenizer import AudioDetokenizer, AudioTokenizer


@dataclass(frozen=True)
class AceStepConfig:
    """Sizes of one checkpoint. `decoder` is the DiT, `encoder` every other transformer in the file."""

    decoder: AttentionShape
    encoder: AttentionShape
    windowed_layers: tuple[bool, ...]
    text_width: int = 1024
    n_lyric_layers: int = 8
    n_timbre_layers: int = 4
    n_pooler_layers: int = 2

    @property
    def timbre_class_token(self) -> bool:
        """XL, whose decoder is wider than its encoder, reads timbre at a learned token; 2B does not."""
        return self.decoder.width != self.encoder.width


class AceStep(nn.Module):
    """One checkpoint, ready for weights."""

    def __init__(self, config: AceStepConfig, build: Build | None = None) -> None:
        super().__init__()
        build = build or Build()
        self.config = config
        encoder = config.encoder
        self.decoder = DiT(config.decoder, encoder.width, config.windowed_layers, build)
        self.encoder = ConditionEncoder(
            config.text_width,
            alternating(config.n_lyric_layers),
            alternating(config.n_timbre_layers),
            encoder,
            build,
            config.timbre_class_token,
        )
        self.tokenizer = AudioTokenizer(config.n_pooler_layers, encoder, build)
        self.detokenizer = AudioDetokenizer(config.n_pooler_layers, encoder, build)
        self.null_condition_emb = build.parameter(1, 1, encoder.width)

    def tokenize(self, latents: Tensor, silence: Tensor) -> Tensor:
        """Return codes [B, ceil(T/5)] of latents [B, T, 64], the last group filled up with silence [1, n, 64]."""
        missing = -latents.shape[1] % FRAMES_PER_CODE
        tail = silence[:, :missing].to(latents).expand(latents.shape[0], -1, -1)
        codes: Tensor = self.tokenizer(torch.cat((latents, tail), dim=1))
        return codes

    def detokenize(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return hints [B, 5K, 64] of codes [B, K]: coarse latents for the DiT, not for the VAE."""
        hints: Tensor = self.detokenizer(self.tokenizer.quantizer.decode(codes, dtype))
        return hints

    def velocity(
        self, x: Tensor, t: Tensor, context: Tensor, states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return one DiT velocity [B, T, 64] from scratch; loops keep the modulation and cross K/V instead."""
        cross = self.decoder.cross_kv(states, attention_mask)
        v: Tensor = self.decoder(x, context, self.decoder.modulation(t, x.dtype), cross)
        return v


def chunk_context(source: Tensor, mask: Tensor) -> Tensor:
    """Return the DiT's context [B, T, 128]: source latents [B, T, 64], then the mask [B, T] on 64 channels."""
    return torch.cat((source, mask.to(source)[..., None].expand_as(source)), dim=-1)
