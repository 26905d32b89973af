"""Reads every trainer's adapter files into one form: which weights of the model change, and how.

The format is detected from the content. source.py opens files, names.py knows the names, change.py the maths of a
change, config.py PEFT's config; refuse.py turns away adapters of other models. fit.py fits the result to a model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .change import Change, Factors, Full, Hadamard, Kronecker, LowRank
from .config import PeftConfig
from .names import exists, path_of, split
from .refuse import refuse_others
from .source import Source, open_source, parsed_metadata

# A file has the first format whose marks all occur somewhere in its tensor names.
FORMATS = (
    ("PEFT LoKr", ("base_model.model.", ".lokr_w1")),
    ("LyCORIS DoKr", (".lokr_w1", ".dora_scale")),
    ("LyCORIS LoKr", (".lokr_w1",)),
    ("PEFT LoHa", ("base_model.model.", ".hada_w1_a")),
    ("LyCORIS LoHa", (".hada_w1_a",)),
    ("PEFT DoRA", ("base_model.model.", ".lora_magnitude_vector")),
    ("LyCORIS DoRA", (".dora_scale",)),
    ("PEFT LoRA, wrapped twice", ("base_model.model.base_model.model.",)),
    ("PEFT LoRA", ("base_model.model.", ".lora_A")),
    ("ComfyUI LoRA", ("base_model.model.", ".lora_down")),
    ("diffusers LoRA", ("transformer.", ".lora_A")),
    ("DiffSynth LoRA", (".lora_A.default",)),
    ("OneTrainer LoRA", ("lora_transformer_",)),
    ("kohya LoRA", ("lora_unet_",)),
    ("LyCORIS LoRA", ("lycoris_",)),
    ("ComfyUI LoRA", ("diffusion_model.",)),
    ("LoRA", ()),
)
ALPHA_IS_RANK = ("diffusers LoRA", "DiffSynth LoRA")  # where the file states no alpha
# Metadata: alpha is already multiplied into the factors. Our own export writes it.
BAKED_ALPHA = "alpha_baked"
LOKR_CONFIG = "lokr_config"  # JSON in the metadata, by Side-Step and the official LoKr trainer
TRIGGERS = ("trigger_word", "trigger", "tag", "custom_tag", "modelspec.trigger_phrase")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter file: what it changes, and what to tell the user."""

    name: str
    format: str  # a title of FORMATS
    changes: Mapping[str, Change]  # by our name of the weight
    unknown: tuple[str, ...]  # modules, named as in the file, that no ACE-Step 1.5 model has or that are not supported
    notes: tuple[str, ...]  # what to warn of
    alpha_known: bool
    trigger: str  # the word in a caption that calls the adapter, "" if the file names none


def read_adapter(path: Path) -> Adapter:
    """Return the adapter of a file or folder.

    Raises: FileNotFoundError if a file is missing; ValueError for a damaged file, an adapter of another model, or one
    that contradicts the config beside it.
    """
    source = open_source(path)
    kind = _format(source)
    modules, others = _modules(source)
    refuse_others(source, [path_of(module) for module in modules])
    config = PeftConfig(source.name, source.config, source.config_is_beside)
    changes, unknown = _changes(modules, config, source)
    alpha_notes = _alpha_notes(kind, modules, source)
    adapter = Adapter(
        name=source.name,
        format=kind,
        changes=changes,
        unknown=(*unknown, *others),
        notes=(*alpha_notes, *_training_notes(changes)),
        alpha_known=not alpha_notes,
        trigger=next((str(source.metadata[key]) for key in TRIGGERS if source.metadata.get(key)), ""),
    )
    config.check(adapter.changes)
    return adapter


Parts = Mapping[str, Tensor]  # the tensors of one module by role


def _format(source: Source) -> str:
    return next(title for title, marks in FORMATS if all(any(mark in key for key in source.tensors) for mark in marks))


def _modules(source: Source) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the tensors by module and role, and the names of tensors that do not belong to an adapter."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others = []
    for name, tensor in source.tensors.items():
        key = split(name)
        if key is None:
            others.append(name)
        elif key.role in modules[key.module]:
            raise ValueError(f"{source.name} has two tensors for {key.role} of {key.module}: save one adapter a file")
        else:
            modules[key.module][key.role] = tensor
    return modules, others


def _changes(modules: Mapping[str, Parts], config: PeftConfig, source: Source) -> tuple[dict[str, Change], list[str]]:
    """Return the changes by weight, and the modules that give no change."""
    changes: dict[str, Change] = {}
    unknown = []
    for module, parts in modules.items():
        path = path_of(module)
        _check_finite(source.name, module, parts)
        of_module = _changes_of(path, parts, config, source) if exists(path) else {}
        if doubled := of_module.keys() & changes.keys():
            raise ValueError(f"{source.name} changes {min(doubled)} under two names: save one adapter a file")
        changes |= of_module
        if not of_module:
            unknown.append(module)
    return changes, unknown


def _check_finite(name: str, module: str, parts: Parts) -> None:
    for tensor in parts.values():
        if not torch.isfinite(tensor.float().sum()):  # faster than testing each number
            raise ValueError(f"{name} holds NaN or infinity in {module}: its training diverged, use an earlier save")


def _changes_of(path: str, parts: Parts, config: PeftConfig, source: Source) -> dict[str, Change]:
    """Return the changes of a module's weight and bias, {} if its tensors are not supported or incomplete."""
    if "unsupported" in parts:
        return {}
    weight = path if _is_parameter(path) else f"{path}.weight"
    changes: dict[str, Change] = {}
    if "diff_b" in parts:
        changes[f"{path}.bias"] = Change(Full(torch.atleast_1d(parts["diff_b"])))
    if "diff" in parts:
        changes[weight] = Change(Full(torch.atleast_1d(parts["diff"])))
    try:
        factors = _factors(parts)
    except ValueError as error:
        raise ValueError(f"{source.name} is damaged at {path}, {error}: download it again") from None
    if factors is not None:
        magnitude = parts.get("magnitude")
        if magnitude is not None:
            magnitude = magnitude.reshape(magnitude.shape[0], -1)  # PEFT's is [out]
        changes[weight] = Change(factors, _scale(path, factors, parts, config, source), magnitude)
    return changes


def _is_parameter(path: str) -> bool:
    return path.endswith(("scale_shift_table", "null_condition_emb", "special_token", "special_tokens"))


def _factors(parts: Parts) -> Factors | None:
    """Return a module's factors, None where some are missing."""
    if "up" in parts and "down" in parts:
        return LowRank(parts["up"], parts["down"])
    if "hada_w1_a" in parts and {"hada_w1_b", "hada_w2_a", "hada_w2_b"} <= parts.keys():
        return Hadamard(*(parts[f"hada_{role}"] for role in ("w1_a", "w1_b", "w2_a", "w2_b")))
    outer, outer_rank = _kronecker_factor(parts, "w1")
    inner, inner_rank = _kronecker_factor(parts, "w2")
    if outer is not None and inner is not None:
        return Kronecker(outer, inner, inner_rank or outer_rank)
    return None


def _kronecker_factor(parts: Parts, role: str) -> tuple[Tensor | None, int | None]:
    """Return one side of a LoKr, multiplied out, and its rank if it was stored as two low-rank factors."""
    a, b = parts.get(f"{role}_a"), parts.get(f"{role}_b")
    if role in parts:
        return parts[role], None
    if a is None or b is None:
        return None, None
    return LowRank(a.float(), b.float()).matrix(), b.shape[0]


def _scale(path: str, factors: Factors, parts: Parts, config: PeftConfig, source: Source) -> float:
    """Return the scale of a module's factors: its own alpha / rank, else what PEFT's config says."""
    rank = factors.rank or _stated_rank(source)
    if "alpha" in parts:
        # A LoKr with two full sides has no rank. LyCORIS then stores alpha = rank, which makes the scale 1.
        return float(parts["alpha"]) / rank if rank else 1.0
    return config.scale(path, factors.rank)


def _stated_rank(source: Source) -> int | None:
    """Return the rank in a LoKr's metadata. Source: sd-scripts and Side-Step, keys of their metadata."""
    rank = parsed_metadata(source.metadata, LOKR_CONFIG).get("linear_dim") or source.metadata.get("ss_network_dim")
    return int(rank) if rank is not None and str(rank).isdigit() else None


def _alpha_notes(kind: str, modules: Mapping[str, Parts], source: Source) -> list[str]:
    is_stated = source.config or BAKED_ALPHA in source.metadata or any("alpha" in parts for parts in modules.values())
    has_factors = any("up" in parts or "hada_w1_a" in parts for parts in modules.values())
    if is_stated or kind in ALPHA_IS_RANK or not has_factors:
        return []
    return [
        f"alpha is unknown: neither {source.name} nor an adapter_config.json beside it states it, so a scale of 1 "
        "is used; the official trainer's default alpha is 2 × the rank, which strength 2 would match"
    ]


def _training_notes(changes: Mapping[str, Change]) -> list[str]:
    def is_zero(change: Change) -> bool:
        factors = change.factors
        if change.magnitude is not None:
            return False
        if isinstance(factors, LowRank):
            return not (factors.up.any() and factors.down.any())
        if isinstance(factors, Kronecker):
            return not (factors.outer.any() and factors.inner.any())
        return isinstance(factors, Full) and not factors.difference.any()

    if changes and all(map(is_zero, changes.values())):
        return ["every change is zero: this adapter was never trained"]
    return []
