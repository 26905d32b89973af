"""Writes an adapter in the form that most programs read alike: PEFT's names, with alpha multiplied into the factors.

A LoRA without alpha has scale 1 in every program, so no program can lose the scale. Changes that PEFT has no names for
get LyCORIS's or ComfyUI's; ComfyUI and this pack then read the whole file, PEFT only the LoRA in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..atomic_write import encoded, write_new
from .change import Change, Full, Hadamard, Kronecker, LowRank
from .files import BAKED_ALPHA, LOKR_CONFIG, TRIGGERS, Adapter
from .names import DECODER, flattened
from .source import PEFT_CONFIG

PEFT_WEIGHTS = "adapter_model.safetensors"
SOURCE_FORMAT = "source_format"  # in the metadata: a title of FORMATS, which says nothing of what the adapter does
PEFT_PREFIX, LYCORIS_PREFIX, COMFYUI_PREFIX = "base_model.model.", "lycoris_", "diffusion_model."


def save_portable(adapter: Adapter, path: Path) -> list[str]:
    """Write an adapter as one .safetensors file, or as a PEFT folder; return what some programs will not read.

    Raises: FileExistsError if the path exists; ValueError for a folder if PEFT could not read all of the adapter.
    """
    taken = f"{path.name} exists already: choose another name, or remove it first"
    if path.exists():
        raise FileExistsError(taken)
    is_folder = path.suffix != ".safetensors"
    if is_folder and not all(map(_is_of_peft, adapter.changes.values())):
        raise ValueError(
            f"{adapter.name} holds more than PEFT's folders can: write a single file, {path.name}.safetensors"
        )
    weights = save(_tensors(adapter), _metadata(adapter))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if is_folder:
            path.mkdir()
            config = encoded(json.dumps(_peft_config(adapter), indent=2) + "\n")
            write_new({path / PEFT_WEIGHTS: weights, path / PEFT_CONFIG: config})
        else:
            write_new({path: weights})
    except FileExistsError:  # another program was faster
        raise FileExistsError(taken) from None
    return _lost(adapter)


def keep_portable(adapter: Adapter, path: Path) -> tuple[Path, bool]:
    """Return the file that holds an adapter as save_portable writes it, and whether it was there already.

    path: a .safetensors file. Where it holds anything else it stays, and the next of name_2, name_3, … is taken.

    Raises: ValueError, one sentence, where the disk refuses.
    """
    others = (path.with_stem(f"{path.stem}_{number}") for number in count(2))
    for file in chain([path], others):
        try:
            save_portable(adapter, file)
            return file, False
        except FileExistsError:  # for long, or because another program was faster: look at what it holds
            if _holds(file, adapter):
                break
        except OSError as error:
            raise ValueError(
                f"{file.name} cannot be written to {file.parent}: {error.strerror or error}; make room there or choose "
                "another name"
            ) from None
    return file, True


def _holds(path: Path, adapter: Adapter) -> bool:
    """Tell whether a file has an adapter's tensors, bit for bit, and its metadata but for where it came from."""
    tensors, metadata = _tensors(adapter), _metadata(adapter)
    try:
        with safe_open(path, framework="pt") as opened:
            kept = opened.metadata() or {}
            return (
                {**kept, SOURCE_FORMAT: ""} == {**metadata, SOURCE_FORMAT: ""}
                and tensors.keys() == {*opened.keys()}
                and all(_is_same(opened.get_tensor(name), tensor) for name, tensor in tensors.items())
            )
    except (OSError, SafetensorError):  # a folder, or no whole .safetensors file
        return False


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return an adapter's tensors under their portable names."""
    tensors: dict[str, Tensor] = {}
    for weight, change in adapter.changes.items():
        tensors |= _named(weight, change)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _is_of_peft(change: Change) -> bool:
    return isinstance(change.factors, LowRank) and (change.magnitude is None or change.magnitude.shape[1] == 1)


def _metadata(adapter: Adapter) -> dict[str, str]:
    metadata = {"format": "pt", BAKED_ALPHA: "true", SOURCE_FORMAT: adapter.format}
    if any(isinstance(change.factors, Kronecker) for change in adapter.changes.values()):
        metadata[LOKR_CONFIG] = json.dumps({"linear_dim": 1, "linear_alpha": 1})  # acestep.cpp skips a LoKr without it
    if adapter.trigger:
        metadata[TRIGGERS[0]] = adapter.trigger
    return metadata


def _named(weight: str, change: Change) -> dict[str, Tensor]:
    """Return the tensors of one change under their portable names."""
    path, factors = weight.removesuffix(".weight"), change.factors
    below = path.removeprefix(DECODER)
    if isinstance(factors, Full):
        bias = weight.endswith(".bias")
        key = f"{COMFYUI_PREFIX}{weight.removesuffix('.bias').removesuffix('.weight')}"
        return {f"{key}.diff{'_b' if bias else ''}": factors.difference}
    if isinstance(factors, LowRank):
        # PEFT wraps only the decoder.
        key = PEFT_PREFIX + below if below != path else COMFYUI_PREFIX + path
        # In float32, or the product with the scale would be rounded a second time.
        named = {f"{key}.lora_A.weight": factors.down, f"{key}.lora_B.weight": change.scale * factors.up.float()}
        return named | _magnitude(f"{key}.lora_magnitude_vector", f"{key}.dora_scale", change.magnitude)
    key = LYCORIS_PREFIX + flattened(below) if below != path else COMFYUI_PREFIX + path
    if isinstance(factors, Kronecker):
        named = {f"{key}.lokr_w1": change.scale * factors.outer.float(), f"{key}.lokr_w2": factors.inner}
        named[f"{key}.alpha"] = torch.tensor(1.0)
    else:
        named = _hadamard(key, factors, change.scale)
    return named | _magnitude(None, f"{key}.dora_scale", change.magnitude)


def _hadamard(key: str, factors: Hadamard, scale: float) -> dict[str, Tensor]:
    return {
        f"{key}.hada_w1_a": scale * factors.up_1.float(),
        f"{key}.hada_w1_b": factors.down_1,
        f"{key}.hada_w2_a": factors.up_2,
        f"{key}.hada_w2_b": factors.down_2,
        f"{key}.alpha": torch.tensor(float(factors.rank)),
    }


def _magnitude(peft: str | None, lycoris: str, magnitude: Tensor | None) -> dict[str, Tensor]:
    """Return DoRA's magnitude under its name. PEFT has only that of rows, as a vector."""
    if magnitude is None:
        return {}
    if peft is not None and magnitude.shape[1] == 1:
        return {peft: magnitude.flatten()}
    return {lycoris: magnitude}


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    """Return PEFT's config: alpha equal to the rank of every module, so that its scale is 1."""
    ranks = {
        weight.removesuffix(".weight").removeprefix(DECODER): change.factors.rank
        for weight, change in adapter.changes.items()
        if isinstance(change.factors, LowRank) and weight.startswith(DECODER)
    }
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    exceptions = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": exceptions,
        "alpha_pattern": exceptions,
        "target_modules": sorted({path.rpartition(".")[2] for path in ranks}),
        "use_dora": any(change.magnitude is not None for change in adapter.changes.values()),
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
    }


def _lost(adapter: Adapter) -> list[str]:
    changes: Mapping[str, Change] = adapter.changes
    lost = []
    others = [weight for weight, change in changes.items() if not isinstance(change.factors, LowRank)]
    if others:
        lost.append(f"{len(others)} of {len(changes)} changes are not LoRA: PEFT and diffusers will not read those")
    if any(change.magnitude is not None for change in changes.values()):
        lost.append("it has DoRA magnitudes: ComfyUI's own loader ignores them or computes them differently")
    if adapter.unknown:
        lost.append(f"{len(adapter.unknown)} modules belong to no ACE-Step 1.5 model and were left out")
    return lost
