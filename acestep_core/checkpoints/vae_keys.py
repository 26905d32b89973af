"""A VAE's weights in files: folds weight norm, and translates ComfyUI's names to diffusers'."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from torch import Tensor

StateDict = Mapping[str, Tensor]

WEIGHT_NORM_PARAMETRIZATION = ("parametrizations.weight.original0", "parametrizations.weight.original1")
UNIT_PARTS = ("snake1", "conv1", "snake2", "conv2")  # of a residual unit, in order
_LAYER_KEY = re.compile(r"^((?:encoder|decoder)(?:\.layers\.\d+)+)\.(.+)$")


def fold_weight_norm(state_dict: StateDict) -> dict[str, Tensor]:
    """Return the state dict with every pair of magnitude g and direction v replaced by one weight, g · v / ‖v‖.

    Reads both of torch's namings. The norm runs over all axes but the first, which is the output channels of a
    convolution and the input channels of a transposed one. The new weights are float32: rounding them to the file's
    bf16 again would change the sound by a hundredth of its peak.

    Raises: ValueError where one of a pair is missing.
    """
    folded = dict(state_dict)
    for g_name, v_name in (("weight_g", "weight_v"), WEIGHT_NORM_PARAMETRIZATION):
        for key in state_dict:
            if not key.endswith((g_name, v_name)):
                continue
            module = key.removesuffix(g_name).removesuffix(v_name)
            if module + "weight" in folded:  # by the other one of the pair
                continue
            g, v = folded.pop(module + g_name, None), folded.pop(module + v_name, None)
            if g is None or v is None:
                raise ValueError(f'the VAE has only half of the weight "{module}weight": the file looks truncated')
            length = v.float().flatten(1).norm(dim=1).view(-1, 1, 1)
            folded[module + "weight"] = v.float() * (g.float() / length)
    return folded


def from_comfyui_keys(state_dict: StateDict) -> dict[str, Tensor]:
    """Return a state dict of stable-audio-tools names under diffusers names; other keys stay as they are."""
    indices = [int(match[1]) for key in state_dict if (match := re.match(r"encoder\.layers\.(\d+)\.", key))]
    names = _comfyui_modules(n_stages=max(indices, default=2) - 2)
    renamed = {}
    for key, tensor in state_dict.items():
        module, _, leaf = _LAYER_KEY.sub(r"\1 \2", key).partition(" ")
        if module in names and leaf in ("alpha", "beta"):
            tensor = tensor.reshape(1, -1, 1)
        renamed[f"{names[module]}.{leaf}" if module in names else key] = tensor
    return renamed


def _comfyui_modules(n_stages: int) -> dict[str, str]:
    """Return diffusers' names of modules by stable-audio-tools' names, which are only positions."""
    names = {}
    for side, resampling, units_from in (("encoder", "conv1", 0), ("decoder", "conv_t1", 2)):
        names[f"{side}.layers.0"] = f"{side}.conv1"
        names[f"{side}.layers.{n_stages + 1}"] = f"{side}.snake1"
        names[f"{side}.layers.{n_stages + 2}"] = f"{side}.conv2"
        for stage in range(n_stages):
            layers, block = f"{side}.layers.{stage + 1}.layers", f"{side}.block.{stage}"
            # Encoder: units 0..2, snake 3, convolution 4. Decoder: snake 0, convolution 1, units 2..4.
            names[f"{layers}.{(units_from + 3) % 5}"] = f"{block}.snake1"
            names[f"{layers}.{(units_from + 4) % 5}"] = f"{block}.{resampling}"
            for unit, (position, part) in itertools.product(range(3), enumerate(UNIT_PARTS)):
                names[f"{layers}.{units_from + unit}.layers.{position}"] = f"{block}.res_unit{unit + 1}.{part}"
    return names
