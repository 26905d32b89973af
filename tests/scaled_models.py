"""Models in scaled fp8 as ComfyUI stores them, and the plain weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

HIGHEST = 448.0  # in float8_e4m3fn
COMFY_QUANT = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
FORMS = ("old", "old, for fp8 layers", "new", "new, by row")


def scaled(state: Mapping[str, Tensor], form: str) -> tuple[State, State]:
    """Return a model with its matrices in scaled fp8, and in float32 what they then are: scale times weight."""
    stored, plain = dict(state), {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in plain.items():
        if not name.endswith(".weight") or tensor.ndim < 2:
            continue
        layer = name.removesuffix(".weight")
        axes = tuple(range(1, tensor.ndim)) if form == "new, by row" else tuple(range(tensor.ndim))
        scale = tensor.abs().amax(axes, keepdim=True).clamp_min(1e-6) / HIGHEST
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        plain[name] = stored[name].float() * scale
        if form.startswith("old"):
            stored[f"{layer}.scale_weight"] = scale.reshape(())
        else:
            stored[f"{layer}.weight_scale"] = scale.reshape(-1, 1) if form == "new, by row" else scale.reshape(())
            stored[f"{layer}.comfy_quant"] = COMFY_QUANT.clone()
        if form == "old, for fp8 layers":
            stored[f"{layer}.scale_input"] = torch.tensor(0.5)
    if form.startswith("old"):
        stored["scaled_fp8"] = torch.zeros(0 if "layers" in form else 2, dtype=torch.float8_e4m3fn)
    return stored, plain
