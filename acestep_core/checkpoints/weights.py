"""Weight files on disk: one .safetensors, or a folder with one or with shards, checked before it is read.

Owns file formats and their damage; what the tensors mean is for keys.py and detect.py. Tensors are passed on
as the reader gives them, so a host whose reader leaves them in the file keeps them there. No pickle is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Read = Callable[[Path], Mapping[str, Tensor]]

SUFFIXES = (".safetensors", ".sft")
STEMS = ("model", "diffusion_pytorch_model")  # what transformers and diffusers call their weight files
PICKLES = ("*model*.bin", "*model*.pt", "*model*.pth", "*model*.ckpt")
LFS_POINTER = b"version https://git-lfs"
# Format limits. Source: huggingface/safetensors, `README.md` and `safetensors/src/tensor.rs`.
HEADER_SIZE_BYTES = 8
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of a file or folder and the model's config."""

    name: str  # of the file or folder, for messages
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]  # from config.json beside them or the metadata inside, else empty


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file; their pages are read from disk when they are used."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged ({error}): download it again") from error


def open_weights(path: Path, read: Read = read_safetensors) -> Weights:
    """Return the weights of a file, or of a folder with config.json and a whole or sharded weight file.

    Raises: FileNotFoundError for a missing file, folder or shard; ValueError for one that is empty, cut
    short, or no .safetensors.
    """
    if path.is_dir():
        return _open_folder(path, read)
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in {path.parent}: download it or choose another")
    config = _config_inside(_header(path))
    return Weights(path.name, read(path), config)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises: ValueError where it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object: download it again")
    return content


def _open_folder(folder: Path, read: Read) -> Weights:
    files = _weight_files(folder)
    for file in files:
        _header(file)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read(file))
    config = folder / "config.json"
    return Weights(folder.name, tensors, read_json(config) if config.is_file() else {})


def _weight_files(folder: Path) -> list[Path]:
    for stem in STEMS:
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
    if pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        raise ValueError(
            f"{folder.name} has its weights in {pickles[0]}: only .safetensors is read, because a pickle can "
            "run code; get the .safetensors version"
        )
    raise FileNotFoundError(
        f"{folder.name} has no weights: model.safetensors, or shards with model.safetensors.index.json, "
        "belong in it; download it again"
    )


def _shards(index: Path) -> list[Path]:
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if not names:
        raise ValueError(f"{index.parent.name}/{index.name} names no shards: download it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent.name} lacks {missing[0]}, {len(missing)} of its {len(names)} shards in all: "
            "download it again"
        )
    return [index.parent / name for name in names]


def _header(path: Path) -> dict[str, Any]:
    """Return a .safetensors file's header, after holding it against the file's size."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path.name} is no .safetensors file: nothing else is read, because a pickle can run code; "
            "get the .safetensors version"
        )
    n_bytes = path.stat().st_size
    if n_bytes == 0:
        raise ValueError(f"{path.name} is empty: download it again")
    with path.open("rb") as file:
        start = file.read(HEADER_SIZE_BYTES)
        n_header = int.from_bytes(start, "little")
        raw = file.read(n_header) if n_header <= MAX_HEADER_BYTES else b""
    if LFS_POINTER.startswith(start):
        raise ValueError(f"{path.name} is a Git LFS pointer, not the weights it points to: download those")
    if len(raw) < n_header and raw.startswith(b"{"):
        raise ValueError(f"{path.name} ends in its header: it looks truncated, download it again")
    try:
        header: dict[str, Any] = json.loads(raw)
        n_needed = HEADER_SIZE_BYTES + n_header + _data_bytes(header)
    except (ValueError, AttributeError, LookupError, TypeError):  # no JSON, or JSON of another shape
        raise ValueError(f"{path.name} is not what its name says, a .safetensors file: download it again") from None
    if n_bytes < n_needed:
        raise ValueError(f"{path.name} has {n_bytes:,} of {n_needed:,} bytes: it looks truncated, download it again")
    return header


def _data_bytes(header: dict[str, Any]) -> int:
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return max(ends, default=0)


def _config_inside(header: dict[str, Any]) -> dict[str, Any]:
    """Return the config that some tools store in a file's metadata, as JSON under "config"."""
    try:
        config = json.loads(header.get("__metadata__", {}).get("config", ""))
    except ValueError:
        config = None
    return config if isinstance(config, dict) else {}
