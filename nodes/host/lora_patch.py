"""Adapters as ComfyUI patches: on a clone of a MODEL, so that nothing shared changes and all of it can be undone.

ComfyUI applies the patches when it loads the weights, wholly, partly or quantised, and takes them off again. All
adapters that follow one another on a MODEL share one patch a weight: each starts from the weight of the MODEL they
began with, and their sum is rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ...acestep_core.checkpoints.read import SHAPES_ONLY
from ...acestep_core.lora.change import Change, merged
from ...acestep_core.lora.fit import Fit, Shapes, Strengths
from ...acestep_core.models.acestep import AceStep, AceStepConfig
from .model import require_ours

NETWORK = "diffusion_model."  # in front of our names in ComfyUI's model


class ChangesPatch(WeightAdapterBase):
    """One weight's changes, in ComfyUI's terms: tuples of tensors, which it moves ahead of their use."""

    name = "acestep"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        # ComfyUI makes a copy by these two when it has moved the tensors.
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: object,
        function: object,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: object = None,
    ) -> torch.Tensor:
        """Return the patched weight; strength is that of a hook or a merge, 1 otherwise."""
        return merged(weight, [(strength * own, change) for own, change in map(_unpacked, self.weights)])


def shapes_of(patcher) -> Shapes:
    """Return the weights of a MODEL that a patch can change, by our names, with their shapes.

    ComfyUI patches what its layers hold. Bare parameters such as scale_shift_table it passes over in silence, so
    they are left out here, where an adapter that wants them is told of.

    Raises ValueError for a MODEL that our loader did not make.
    """
    network = require_ours(patcher).diffusion_model
    layers = {name for name, module in network.named_modules() if hasattr(module, "comfy_cast_weights")}
    return {name: shape for name, shape in _shapes(network.config).items() if name.rpartition(".")[0] in layers}


def patched(patcher, found: Fit, strengths: Strengths):
    """Return a clone of a MODEL with a fitted adapter on it; where its strength is 0, no patch is added."""
    active = {weight: (strengths.of(weight), change) for weight, change in found.changes.items()}
    clone = patcher.clone()
    _add(clone, {NETWORK + weight: _packed(*each) for weight, each in active.items() if each[0]})
    return clone


@functools.lru_cache(maxsize=2)
def _shapes(config: AceStepConfig) -> Shapes:
    """Return the shapes of a model's weights. The live ones may be packed by quantisation."""
    return {name: like.shape for name, like in AceStep(config, SHAPES_ONLY).state_dict().items()}


def _add(patcher, added: Mapping[str, tuple[Any, ...]]) -> None:
    """Add a change to each weight's patches: to our own if that is the last of them, else as a new one."""
    patches = {}
    for key, packed in added.items():
        last = patcher.patches[key][-1][1] if patcher.patches.get(key) else None
        earlier = last.weights if isinstance(last, ChangesPatch) else ()
        if earlier:
            patcher.patches[key].pop()
        patches[key] = ChangesPatch(set(), (*earlier, packed))
    applied = patcher.add_patches(patches)
    if missing := patches.keys() - set(applied):
        raise RuntimeError(f"ComfyUI took not all of {len(patches)} patches; the first it left is {min(missing)}")


def _packed(strength: float, change: Change) -> tuple[Any, ...]:
    factors = change.factors
    values = tuple(_plain(getattr(factors, field.name)) for field in fields(factors))
    return strength, type(factors), values, change.scale, _plain(change.magnitude)


def _unpacked(packed: tuple[Any, ...]) -> tuple[float, Change]:
    strength, kind, values, scale, magnitude = packed
    return strength, Change(kind(*values), scale, magnitude)


def _plain(value: Any) -> Any:
    """Return a tensor in the memory order that ComfyUI copies it in; anything else as it is."""
    return value.contiguous() if isinstance(value, torch.Tensor) else value
