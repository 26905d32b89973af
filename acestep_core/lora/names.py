"""Names in adapter files: the role of each tensor, and our name of the weight that it belongs to.

Trainers add prefixes, sometimes twice, write underscores for dots, or use diffusers' names. Our names are those of the
official checkpoint. Which names exist is taken from the model itself, not listed here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ..checkpoints.keys import DIFFUSERS_NAMES
from ..checkpoints.read import SHAPES_ONLY
from ..models.acestep import AceStep, AceStepConfig
from ..models.layers import AttentionShape

DECODER = "decoder."
# Beside the decoder in a checkpoint; every other name is inside it.
SIBLINGS = ("encoder.", "tokenizer.", "detokenizer.", "null_condition_emb")

# The end of a tensor's name -> its role in the module. "unsupported" is known, but cannot be used.
ROLES = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_down": "down",
    "lora_up": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "magnitude",
    "alpha": "alpha",
    **{f"lokr_{role}": role for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    **{f"hada_{role}": f"hada_{role}" for role in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "diff": "diff",
    "w_norm": "diff",
    "diff_b": "diff_b",
    "b_norm": "diff_b",
    **dict.fromkeys(("lora_mid", "lokr_t2", "hada_t1", "hada_t2", "set_weight"), "unsupported"),
}
# PEFT puts the adapter's name, usually "default", between the role and "weight".
_KEY = re.compile(
    rf"(?P<module>.+?)[._](?P<role>{'|'.join(map(re.escape, sorted(ROLES, key=len, reverse=True)))})"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
)
# Removed repeatedly until none is left. "model." alone is not a prefix: it marks a language model.
PREFIXES = (
    "base_model.model.",
    "base_model.",
    "diffusion_model.",
    "model.diffusion_model.",
    "model.decoder.",
    DECODER,
    "transformer.",
    "pipe.dit.",
    "dit.",
    "module.",
    "_forward_module.",
    "_orig_mod.",
)
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
# Projections fused into one. No trainer of ACE-Step 1.5 is known to fuse them, but converters may.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "kv_proj": ("k_proj", "v_proj"),
}
_FUSED_ALIASES = {"qkv": "qkv_proj", "to_qkv": "qkv_proj", "kv": "kv_proj", "to_kv": "kv_proj"}


@dataclass(frozen=True)
class Key:
    """A tensor's name in two parts."""

    module: str  # as the file calls it
    role: str  # a value of ROLES


def split(key: str) -> Key | None:
    """Return a tensor's module and role, None if it does not belong to an adapter."""
    match = _KEY.fullmatch(key)
    return Key(match["module"], ROLES[match["role"]]) if match else None


def path_of(module: str) -> str:
    """Return our path for a module of a file; whether it exists is not checked."""
    for prefix in FLAT_PREFIXES:
        if module.startswith(prefix):
            module = _unflattened(module.removeprefix(prefix))
    while (shorter := _without_prefix(module)) != module:
        module = shorter
    module = renamed(module)
    parent, _, last = module.rpartition(".")
    if last in _FUSED_ALIASES:
        module = f"{parent}.{_FUSED_ALIASES[last]}"
    return module if module.startswith(SIBLINGS) else DECODER + module


def renamed(module: str) -> str:
    """Return a module's name, or the end of one, with diffusers' words replaced by ours."""
    for theirs, ours in DIFFUSERS_NAMES.items():
        module = f".{module}.".replace(theirs, ours)[1:-1]
    return module


def exists(path: str) -> bool:
    """Return whether some ACE-Step 1.5 model has this module or parameter, however many layers it has."""
    return _numberless(path) in _known_paths()


def flattened(path: str) -> str:
    """Return a path with underscores for dots, as LyCORIS and kohya write it."""
    return path.replace(".", "_")


def _without_prefix(module: str) -> str:
    return next((module.removeprefix(prefix) for prefix in PREFIXES if module.startswith(prefix)), module)


def _unflattened(flat: str) -> str:
    """Return a flat name with dots again; underscores inside the model's own words stay."""
    return ".".join(_words().findall(flat))


def _numberless(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "#", path)


@functools.cache
def _known_paths() -> frozenset[str]:
    parameters = [_numberless(name) for name in _smallest_model()]
    modules = {name.rpartition(".")[0] for name in parameters}
    attentions = {module.rpartition(".")[0] for module in modules if module.endswith(".q_proj")}
    return frozenset({*parameters, *modules, *(f"{path}.{fused}" for path in attentions for fused in FUSED)})


@functools.cache
def _words() -> re.Pattern[str]:
    words = {word for name in _smallest_model() for word in name.split(".") if "_" in word}
    words |= {word for name in DIFFUSERS_NAMES for word in name.split(".") if "_" in word}
    words |= {*FUSED, *(alias for alias in _FUSED_ALIASES if "_" in alias)}
    whole = "|".join(f"{word}(?=_|$)" for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"{whole}|[^_]+")


@functools.cache
def _smallest_model() -> tuple[str, ...]:
    """Return the parameters of models with one layer per stack: every name there is, apart from layer numbers."""
    shape, wider = (AttentionShape(width, 1, 1, 1, 2) for width in (2, 4))
    names: set[str] = set()
    for decoder in (shape, wider):  # 2B and XL
        config = AceStepConfig(decoder, shape, (True,), 1, n_lyric_layers=1, n_timbre_layers=1, n_pooler_layers=1)
        names |= AceStep(config, SHAPES_ONLY).state_dict().keys()
    return tuple(names)
