"""Puts adapters on a clone of a MODEL as ComfyUI patches, so the original stays as it is and all can be undone.

ComfyUI applies the patches when it loads the weights, fully, partly or quantised, and removes them again. Adapters
stacked on a MODEL share one patch per weight: each is computed from the unpatched weight, and the sum is rounded once.
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
    """The changes of one weight in ComfyUI's form: tuples of tensors, which it moves to the device before use."""

    name = "acestep"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        # ComfyUI copies a patch by calling its class with these two, after moving the tensors.
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
        """Return the patched weight; strength is 1 except in a hook or a merge."""
        return merged(weight, [(strength * own, change) for own, change in map(_unpacked, self.weights)])


def shapes_of(patcher) -> Shapes:
    """Return the shapes of the weights of a MODEL that a patch can change, by our names.

    ComfyUI patches only the weights of its layers and silently ignores bare parameters such as scale_shift_table. They
    are left out here, so that the report lists changes to them as not used.

    Raises ValueError for a MODEL that our loader did not make.
    """
    network = require_ours(patcher).diffusion_model
    layers = {name for name, module in network.named_modules() if hasattr(module, "comfy_cast_weights")}
    return {name: shape for name, shape in _shapes(network.config).items() if name.rpartition(".")[0] in layers}


def patched(patcher, fitted: Fit, strengths: Strengths):
    """Return a clone of a MODEL with a fitted adapter on it; a weight whose strength is 0 gets no patch."""
    active = {weight: (strengths.of(weight), change) for weight, change in fitted.changes.items()}
    clone = patcher.clone()
    _add(clone, {NETWORK + weight: _packed(*each) for weight, each in active.items() if each[0]})
    return clone


@functools.lru_cache(maxsize=2)
def _shapes(config: AceStepConfig) -> Shapes:
    """Return the shapes of a model's weights. Quantised weights may be packed, so they cannot be asked."""
    return {name: weight.shape for name, weight in AceStep(config, SHAPES_ONLY).state_dict().items()}


def _add(patcher, added: Mapping[str, tuple[Any, ...]]) -> None:
    """Add a change to each weight's patches: to our own patch if it is the last one, else as a new patch."""
    patches = {}
    for key, packed in added.items():
        last = patcher.patches[key][-1][1] if patcher.patches.get(key) else None
        earlier = last.weights if isinstance(last, ChangesPatch) else ()
        if earlier:
            patcher.patches[key].pop()
        patches[key] = ChangesPatch(set(), (*earlier, packed))
    applied = patcher.add_patches(patches)
    if missing := patches.keys() - set(applied):
        raise RuntimeError(
            f"ComfyUI accepted {len(applied)} of {len(patches)} patches; the first it left out is {min(missing)}"
        )


def _packed(strength: float, change: Change) -> tuple[Any, ...]:
    factors = change.factors
    values = tuple(_plain(getattr(factors, field.name)) for field in fields(factors))
    return strength, type(factors), values, change.scale, _plain(change.magnitude)


def _unpacked(packed: tuple[Any, ...]) -> tuple[float, Change]:
    strength, kind, values, scale, magnitude = packed
    return strength, Change(kind(*values), scale, magnitude)


def _plain(value: Any) -> Any:
    """Return a tensor contiguous in memory, as ComfyUI needs it for copying; anything else unchanged."""
    return value.contiguous() if isinstance(value, torch.Tensor) else value
