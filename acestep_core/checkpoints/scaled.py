"""Weights stored as fp8 with a scale beside them, multiplied out for networks that know plain weights only.

The DiT under ComfyUI keeps its quantisation, which ComfyUI's own layers compute with; all else comes through here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .keys import SCALED_FP8, is_quantization

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ("weight_scale", "scale_weight")  # now, and in older files. Source: Comfy-Org/ComfyUI, `comfy/utils.py`.
# Of use only to layers that compute in fp8: the range of their inputs, and which layer class is meant.
HINTS = {"input_scale", "scale_input", "comfy_quant"}


def dequantized(name: str, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a state dict without scales: each weight that has one is multiplied by it in float32 and cast to dtype.

    name: of the file, for messages. Tensors without a scale are passed on as they are.

    Raises ValueError for a weight quantised in any other form.
    """
    plain = {key: tensor for key, tensor in state.items() if not is_quantization(key)}
    beside: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key not in plain and key != SCALED_FP8:
            layer, _, kind = key.rpartition(".")
            beside.setdefault(layer, {})[kind] = tensor
    for layer, extras in beside.items():
        weight = f"{layer}.weight"
        scale = _scale(plain.get(weight), extras)
        if scale is None:
            raise ValueError(
                f"{name} has {weight} quantised in a form that can be read in ComfyUI's music models only: choose "
                "the bf16 file, or one in scaled fp8"
            )
        plain[weight] = (plain[weight].float() * scale).to(dtype)
    return plain


def _scale(weight: Tensor | None, extras: Mapping[str, Tensor]) -> Tensor | None:
    """Return a weight's scale in float32, for all of it or for each row; None if there is none that can be read."""
    scales = [extras[kind] for kind in SCALES if kind in extras]
    if weight is None or weight.dtype not in FP8 or len(scales) != 1 or extras.keys() - {*SCALES} - HINTS:
        return None
    (scale,) = scales
    if not scale.is_floating_point() or scale.itemsize == 1:  # a block's exponent, not a factor
        return None
    if scale.numel() == 1:
        return scale.float().reshape(())
    is_by_row = scale.numel() == scale.shape[0] == weight.shape[0]
    return scale.float().reshape(-1, *(1,) * (weight.ndim - 1)) if is_by_row else None
