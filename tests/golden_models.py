"""The tiny models and inputs the official code was run on, rebuilt from their formulas.

The formulas, sizes and cases are told in `golden/README.md`; `golden.safetensors` holds the results.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig
from acestep_pack.acestep_core.models.layers import AttentionShape, alternating

GOLDEN = Path(__file__).parent / "golden"
# Allowed error as a part of the tensor's largest magnitude.
SINGLE_FORWARD = 2e-5
WHOLE_GENERATION = 1e-3


@functools.cache
def golden() -> dict[str, Tensor]:
    """Return every stored tensor by name."""
    return load_file(GOLDEN / "golden.safetensors")


def z(name: str, *shape: int) -> Tensor:
    """Return the standard normal numbers that belong to a name, float32."""
    return _z64(name, *shape).float()


def weight(name: str, shape: list[int]) -> Tensor:
    """Return the weight that belongs to an official state-dict key, float32."""
    module, _, leaf = name.rpartition(".")
    numbers = _z64(name, *shape)
    if "norm" in module.rpartition(".")[2]:
        return (1 + 0.1 * numbers).float()
    if leaf == "bias":
        return (0.02 * numbers).float()
    if leaf == "scale_shift_table":
        return (0.1 * numbers).float()
    if leaf in ("special_token", "special_tokens", "null_condition_emb"):
        return numbers.float()
    return (numbers / math.sqrt(math.prod(shape[1:]))).float()


def weights(size: str) -> dict[str, Tensor]:
    """Return the state dict of `2b` or `xl`. Its tensors are shared between tests: leave them as you found them."""
    return {**_weights(size)}


@functools.cache
@torch.inference_mode(False)
def _weights(size: str) -> dict[str, Tensor]:
    keys = json.loads((GOLDEN / f"keys_{size}.json").read_text())
    return {name: weight(name, shape) for name, shape in keys.items()}


def config(size: str) -> AceStepConfig:
    """Return the configuration of `2b` or `xl` as `info.json` states it."""
    raw = json.loads((GOLDEN / "info.json").read_text())[f"cfg_{size}"]

    def shape(prefix: str) -> AttentionShape:
        return AttentionShape(
            width=raw[f"{prefix}hidden_size"],
            mlp_width=raw[f"{prefix}intermediate_size"],
            n_heads=raw[f"{prefix}num_attention_heads"],
            n_kv_heads=raw[f"{prefix}num_key_value_heads"],
            head_dim=raw["head_dim"],
        )

    return AceStepConfig(
        decoder=shape(""),
        encoder=shape("encoder_" if "encoder_hidden_size" in raw else ""),
        windowed_layers=alternating(raw["num_hidden_layers"]),
        text_width=raw["text_hidden_dim"],
        n_lyric_layers=raw["num_lyric_encoder_hidden_layers"],
        n_timbre_layers=raw["num_timbre_encoder_hidden_layers"],
        n_pooler_layers=raw["num_attention_pooler_hidden_layers"],
    )


@functools.cache
@torch.inference_mode(False)  # whoever asks first, it can be used in it and outside
def model(size: str) -> AceStep:
    """Return `2b` or `xl` with its weights loaded, every key matched."""
    built = AceStep(config(size))
    built.load_state_dict(weights(size), strict=True)
    return built.eval()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Fail unless the largest error is within tolerance of the largest magnitude, and say how far off."""
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)} is not {tuple(theirs.shape)}"
    error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    cosine = torch.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0)
    assert error <= tolerance, f"error {error:.2e} of the maximum exceeds {tolerance:.0e} (cosine {cosine:.9f})"
    assert cosine >= 0.999999, f"cosine {cosine:.9f} (error {error:.2e} of the maximum)"


def _z64(name: str, *shape: int) -> Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(rng.standard_normal(shape))
