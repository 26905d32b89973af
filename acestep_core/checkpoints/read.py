"""Model files to tensors under our names: every layout people have, one loader.

Official folders (whole or sharded), ComfyUI's split files and all-in-one checkpoints, diffusers pipelines.
Opening and damage are in weights.py, names in keys.py, sizes and variants in detect.py. Tensors are renamed,
never copied or cast, except the VAE's where weight norm is folded or fp8 has scales (scaled.py).
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from ..constants import AUTO, LATENT_CHANNELS
from ..models.acestep import AceStep, AceStepConfig
from ..models.layers import Build, TorchOps
from ..models.qwen3 import Qwen3, Qwen3Config
from ..models.vae import Vae, VaeConfig
from .detect import FALLBACK_VARIANT, acestep_config, check_tensors, detect_variant, qwen3_config
from .keys import (
    DIFFUSERS_FOLDERS,
    DIT,
    HEAD,
    PLANNER,
    PLANNER_TOKENS,
    SILENCE,
    TEXT_ENCODER,
    TEXT_ENCODER_TOKENS,
    VAE,
    Part,
    from_diffusers,
    is_quantization,
    looks_like,
    prefix_of,
    select,
)
from .scaled import dequantized
from .vae_keys import fold_weight_norm, from_comfyui_keys
from .weights import Read, Weights, open_weights, read_safetensors

PIPELINE_MARK = "model_index.json"  # in the folder of a diffusers pipeline
CONFIG = "config.json"
SILENCE_FILE = "silence_latent.pt"
RELEASED_ENCODER_WIDTH = 2_048  # of 2B and XL alike
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do


class _UnfilledEmbedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Do nothing: torch's normal_ imports its compiler for a tensor without data, which takes seconds."""


class _ShapeOps(TorchOps):
    Embedding = _UnfilledEmbedding


SHAPES_ONLY = Build(ops=_ShapeOps, device="meta")  # for a model of which only names and shapes are wanted


@dataclass(frozen=True, eq=False)
class DiTFile:
    """A DiT checkpoint: tensors under the official names, and what else its layout holds."""

    name: str  # of the file or folder, for messages
    state: dict[str, Tensor]
    config: AceStepConfig
    variant: str  # a key of PRESETS
    variant_known: bool  # False: nothing names the variant, and it is a guess
    silence: Tensor | None  # [1, n, 64]; None in layouts without it
    alignment_heads: dict[str, list[int]] | None  # config.json's `lyric_alignment_layers_config`: layer to heads
    quantized: bool  # state has scales beside the model's tensors, for a host that can use them

    @property
    def is_released_size(self) -> bool:
        """Whether the weights are of a published size, and published_silence is theirs."""
        return self.config.encoder.width == RELEASED_ENCODER_WIDTH


@dataclass(frozen=True, eq=False)
class Qwen3File:
    """A text encoder or planner: tensors without prefix, and the folder of its own tokenizer where it has one.

    config.own_head tells whether a planner has a head of its own. Where quantized, state still has the scales: see
    scaled.py.
    """

    name: str
    state: dict[str, Tensor]
    config: Qwen3Config
    tokenizer_folder: Path | None
    quantized: bool


@dataclass(frozen=True, eq=False)
class VaeFile:
    """A VAE checkpoint: tensors under diffusers' names, weight norm folded, scales multiplied in."""

    name: str
    state: dict[str, Tensor]
    config: VaeConfig


def read_dit(path: Path, variant: str = AUTO, read: Read = read_safetensors) -> DiTFile:
    """Return the DiT of a file or folder.

    variant: auto, or one of VARIANTS; it wins over what the file tells.

    Raises: FileNotFoundError for what is missing on disk; ValueError for a damaged file, another model, or
    weights of another size than the variant's.
    """
    weights = _open_pipeline(path, read) if _is_pipeline(path) else open_weights(path, read)
    state = _part(DIT, weights)
    config = acestep_config(weights.name, state, weights.config)
    check_tensors(weights.name, DIT.title, state, AceStep(config, SHAPES_ONLY).state_dict())
    detected = detect_variant(weights.name, variant, config, weights.config)
    return DiTFile(
        name=weights.name,
        state=state,
        config=config,
        variant=detected or FALLBACK_VARIANT,
        variant_known=detected is not None,
        silence=_silence(path, weights),
        alignment_heads=weights.config.get("lyric_alignment_layers_config"),
        quantized=any(map(is_quantization, state)),
    )


def read_text_encoder(path: Path, read: Read = read_safetensors) -> Qwen3File:
    """Return the text encoder of a file or folder. Raises as read_dit does."""
    return _read_qwen3(path / "text_encoder" if _is_pipeline(path) else path, TEXT_ENCODER, TEXT_ENCODER_TOKENS, read)


def read_planner(path: Path, read: Read = read_safetensors) -> Qwen3File:
    """Return the planner of a file or folder. Raises as read_dit does."""
    if _is_pipeline(path):
        raise ValueError(f"{path.name} is a diffusers pipeline, which has no planner: choose {PLANNER.example}")
    return _read_qwen3(path, PLANNER, PLANNER_TOKENS, read)


def read_vae(path: Path, read: Read = read_safetensors) -> VaeFile:
    """Return the VAE of a file or folder. Raises as read_dit does."""
    weights = open_weights(path / "vae" if _is_pipeline(path) else path, read)
    state = dequantized(weights.name, _part(VAE, weights), torch.float32)
    try:
        state = fold_weight_norm(from_comfyui_keys(state))
        config = VaeConfig.from_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{weights.name}: {error}") from None
    check_tensors(weights.name, VAE.title, state, Vae(config, SHAPES_ONLY).state_dict())
    return VaeFile(weights.name, state, config)


def is_model_folder(path: Path) -> bool:
    """Return whether a folder is one model (config.json) or a diffusers pipeline (model_index.json)."""
    return (path / CONFIG).is_file() or (path / PIPELINE_MARK).is_file()


def list_model_folders(root: Path) -> list[str]:
    """Return the model folders below root, sorted, each as "name/" or "parent/name/" on every system.

    Hidden folders and the parts inside a pipeline are left out.
    """
    names = []
    for parent, folders, _ in os.walk(root, followlinks=True):
        here = Path(parent)
        folders[:] = [] if _is_pipeline(here) else [name for name in folders if not name.startswith(".")]
        if here != root and is_model_folder(here):
            names.append(here.relative_to(root).as_posix() + "/")
    return sorted(names)


def _read_qwen3(path: Path, part: Part, n_tokens: int, read: Read) -> Qwen3File:
    """Return the Qwen3 of a file or folder whose embedding table must have n_tokens rows."""
    weights = open_weights(path, read)
    state = _part(part, weights)
    if state["embed_tokens.weight"].shape[0] != n_tokens:
        raise _another_model(part, weights)
    # A single file's metadata may speak of the DiT beside the text encoder.
    declared = weights.config if path.is_dir() else {}
    if declared.get("tie_word_embeddings"):
        # Some tools write a copy of the embedding all the same.
        state = {key: tensor for key, tensor in state.items() if not key.startswith(HEAD)}
    config = qwen3_config(weights.name, state, declared)
    check_tensors(weights.name, part.title, state, Qwen3(config, SHAPES_ONLY).state_dict())
    return Qwen3File(
        name=weights.name,
        state=state,
        config=config,
        tokenizer_folder=_tokenizer_folder(path),
        quantized=any(map(is_quantization, state)),
    )


def _is_pipeline(path: Path) -> bool:
    return (path / PIPELINE_MARK).is_file()


def _open_pipeline(path: Path, read: Read) -> Weights:
    """Return the DiT file's worth of a diffusers pipeline, names and config as in the official folder."""
    tensors: dict[str, Tensor] = {}
    configs: dict[str, dict[str, Any]] = {}
    for folder in DIFFUSERS_FOLDERS:
        if not (path / folder).is_dir():
            raise FileNotFoundError(f"{path.name} lacks its folder {folder}: download it again")
        weights = open_weights(path / folder, read)
        tensors |= from_diffusers(folder, weights.tensors)
        configs[folder] = dict(weights.config)
    encoder = configs["condition_encoder"]
    of_encoder = {f"encoder_{key}": value for key, value in encoder.items()}
    # A key in both folders, such as hidden_size, means the transformer.
    return Weights(path.name, tensors, configs["audio_tokenizer"] | encoder | configs["transformer"] | of_encoder)


def _part(part: Part, weights: Weights) -> dict[str, Tensor]:
    state = select(part, weights.tensors)
    if state is None:
        raise _another_model(part, weights)
    return state


def _another_model(part: Part, weights: Weights) -> ValueError:
    look = looks_like(weights.tensors)
    if look == part.look:
        first = next(iter(weights.tensors))
        return ValueError(
            f"{weights.name} looks like {look}, but with tensors missing or under names unknown here, such as "
            f"{first}: choose a file such as {part.example}"
        )
    return ValueError(
        f"{weights.name} is not an {part.title}, it looks like {look}: choose a file such as {part.example}"
    )


def _silence(path: Path, weights: Weights) -> Tensor | None:
    """Return the silence latent [1, n, 64] that comes with the weights, inside or beside them."""
    for inside in (SILENCE, (prefix_of(DIT, weights.tensors) or "") + SILENCE):
        if inside not in weights.tensors:
            continue
        silence = weights.tensors[inside]
        return silence if silence.any() else None  # zeros are diffusers' placeholder, and no silence
    file = (path if path.is_dir() else path.parent) / SILENCE_FILE
    return _read_silence(file) if file.is_file() else None


def _read_silence(file: Path) -> Tensor:
    """Return the official file's [1, 64, n] as [1, n, 64]."""
    try:
        # torch.load reads anything but a zip as its pre-1.6 format, where a damaged file can raise anything.
        silence = torch.load(file, map_location="cpu", weights_only=True) if is_zipfile(file) else None
    except (RuntimeError, pickle.UnpicklingError):
        silence = None
    if silence is None:
        raise ValueError(f"{file.parent.name}/{file.name} cannot be read: download it again")
    if not isinstance(silence, Tensor) or silence.ndim != 3 or silence.shape[:2] != (1, LATENT_CHANNELS):
        stored = list(silence.shape) if isinstance(silence, Tensor) else type(silence).__name__
        raise ValueError(
            f"{file.parent.name}/{file.name} must hold a tensor [1, {LATENT_CHANNELS}, frames], "
            f"it has {stored}: download it again"
        )
    return silence.transpose(1, 2)


def _tokenizer_folder(folder: Path) -> Path | None:
    """Return where a text encoder's tokenizer is: in its folder, or beside it in a pipeline."""
    for candidate in (folder, folder.parent / "tokenizer"):
        if any(all((candidate / name).is_file() for name in files) for files in TOKENIZER_FILES):
            return candidate
    return None
