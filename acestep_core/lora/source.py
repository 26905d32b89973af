"""Opens adapter files: finds the weights in a folder, the config beside or inside them, and reads them safely.

A .safetensors file is checked as model files are. A torch file is refused if it holds more than tensors, so no code
in it can run. files.py interprets the tensors.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints.weights import SUFFIXES, open_weights, read_json

PEFT_CONFIG = "adapter_config.json"
WEIGHT_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "lokr_weights.safetensors",
    "loha_weights.safetensors",
    "pytorch_lora_weights.safetensors",
    "lora_weights.pt",
)
# Where trainers put the adapter inside the folder that people copy.
INNER_FOLDERS = ("", "adapter", "final/adapter", "final", "best")
# Metadata in which diffusers and Side-Step keep PEFT's config; its keys begin with the component, "transformer.".
METADATA_CONFIG = "lora_adapter_metadata"


@dataclass(frozen=True, eq=False)
class Source:
    """The content of an adapter file."""

    name: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]  # PEFT's, {} if there is none
    metadata: Mapping[str, str]
    config_is_beside: bool  # whether the config is an adapter_config.json, not a copy of one in the metadata


def open_source(path: Path) -> Source:
    """Return the content of an adapter file, or of the adapter in a folder.

    Raises: FileNotFoundError if a file is missing; ValueError for a damaged file, or one that could run code.
    """
    file = _weights_in(path) if path.is_dir() else path
    tensors, metadata = _read(file)
    config_file = file.parent / PEFT_CONFIG
    # A config counts only for PEFT's own file: it must not scale every other file in the same folder.
    is_beside = (path.is_dir() or file.stem == "adapter_model") and config_file.is_file()
    config = read_json(config_file) if is_beside else _config_inside(metadata)
    return Source(path.name, tensors, config, metadata, is_beside)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that an adapter is read from."""
    file = _weights_in(path) if path.is_dir() else path
    return tuple(each for each in (file, file.parent / PEFT_CONFIG) if each.is_file())


def list_adapter_folders(root: Path) -> list[str]:
    """Return the PEFT folders below root, sorted, as "name/" or "parent/name/", with slashes on every system."""
    names = []
    for parent, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if PEFT_CONFIG in files and Path(parent) != root:
            names.append(Path(parent).relative_to(root).as_posix() + "/")
    return sorted(names)


def _weights_in(folder: Path) -> Path:
    for inner in INNER_FOLDERS:
        for name in WEIGHT_FILES:
            if (folder / inner / name).is_file():
                return folder / inner / name
        others = sorted((folder / inner).glob("*.safetensors"))
        if len(others) == 1:
            return others[0]
    raise FileNotFoundError(
        f"{folder.name} has no adapter weights: one of {', '.join(WEIGHT_FILES)} belongs in it; copy the trainer's "
        "whole output folder"
    )


def _read(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return tensors and metadata. A zip archive is a torch file, whatever its name."""
    if file.is_file() and is_zipfile(file):
        return _read_torch(file), {}
    if file.is_file() and file.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{file.name} is truncated, or a plain pickle, which could run code: nothing was loaded from it; get the "
            ".safetensors version"
        )
    tensors = open_weights(file).tensors
    with safe_open(file, framework="pt") as opened:
        return tensors, opened.metadata() or {}


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file.name} holds more than tensors, which could run code: nothing was loaded from it; get the "
            ".safetensors version"
        ) from None
    except (RuntimeError, EOFError):
        raise ValueError(f"{file.name} is damaged: download it again") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{file.name} is not an adapter: it must hold tensors by name; get the .safetensors version")
    return content


def _config_inside(metadata: Mapping[str, str]) -> dict[str, Any]:
    config = parsed_metadata(metadata, METADATA_CONFIG)
    return {key.removeprefix("transformer."): value for key, value in config.items()}


def parsed_metadata(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Return the JSON object under a key of a file's metadata, {} if there is none."""
    try:
        value = json.loads(metadata.get(key, ""))
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
