"""What a set of tensors is: its sizes, whether it is whole, and which variant of the DiT.

Sizes come from shapes, so a model of any size loads. config.json or metadata adds what shapes cannot tell and
must not contradict them. turbo, sft and base have equal shapes: only config.json and names tell those apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..constants import AUTO
from ..models.acestep import AceStepConfig
from ..models.layers import AttentionShape, alternating
from ..models.qwen3 import Qwen3Config
from .keys import LM_HEAD, is_quantization
from .presets import PRESETS

XL = "xl-"
VARIANTS = (AUTO, *PRESETS, "xl-turbo", "xl-sft", "xl-base")  # what a user may choose
FALLBACK_VARIANT = "turbo"  # the one most people have

# A word of a file's name, and the variant it tells. The first that fits counts.
VARIANT_WORDS = {
    "shift1": "turbo-shift1",
    "shift3": "turbo-shift3",
    "continuous": "turbo-continuous",
    "turbo": "turbo",
    "sft": "sft",
    "base": "base",
}
# config.json's names of layer counts, and ours for messages.
STACKS = {
    "num_hidden_layers": "decoder",
    "num_lyric_encoder_hidden_layers": "lyric encoder",
    "num_timbre_encoder_hidden_layers": "timbre encoder",
    "num_attention_pooler_hidden_layers": "pooler",
}
WINDOWED = "sliding_attention"  # in config.json's layer_types


def acestep_config(name: str, state: Mapping[str, Tensor], declared: Mapping[str, Any]) -> AceStepConfig:
    """Return the configuration of a DiT file's tensors, under our names.

    declared: config.json or metadata, possibly empty.

    Raises: ValueError where a tensor that tells a size is missing, or declared contradicts the shapes.
    """
    with _needs_tensors(name):
        config = AceStepConfig(
            decoder=_attention_shape(state, "decoder.layers.0", "self_attn_norm", declared),
            encoder=_attention_shape(state, "encoder.lyric_encoder.layers.0", "input_layernorm", declared),
            windowed_layers=_windowed_layers(_n_layers(state, "decoder.layers"), declared),
            text_width=state["encoder.lyric_encoder.embed_tokens.weight"].shape[1],
            n_lyric_layers=_n_layers(state, "encoder.lyric_encoder.layers"),
            n_timbre_layers=_n_layers(state, "encoder.timbre_encoder.layers"),
            n_pooler_layers=_n_layers(state, "detokenizer.layers"),
        )
    _compare(name, declared, _acestep_sizes(config))
    return config


def qwen3_config(name: str, state: Mapping[str, Tensor], declared: Mapping[str, Any]) -> Qwen3Config:
    """Return the configuration of a Qwen3's tensors, under our names. Raises as acestep_config does."""
    with _needs_tensors(name):
        config = Qwen3Config(
            shape=replace(_attention_shape(state, "layers.0", "input_layernorm", declared), window=None),
            n_layers=_n_layers(state, "layers"),
            n_tokens=state["embed_tokens.weight"].shape[0],
            own_head=LM_HEAD in state,
        )
    _compare(name, declared, {**_layer_sizes("", config.shape), "num_hidden_layers": config.n_layers})
    return config


def check_tensors(name: str, title: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a state dict has exactly the expected tensors; a quantised weight may have any shape.

    Raises: ValueError that names up to three missing or unexpected tensors, or one of a wrong shape.
    """
    if missing := [key for key in expected if key not in state]:
        raise ValueError(
            f"{name} lacks {len(missing)} of {len(expected)} tensors ({_first(missing)}): "
            "it looks incomplete, download it again"
        )
    if extra := [key for key in state if key not in expected and not is_quantization(key)]:
        raise ValueError(
            f"{name} has tensors that an {title} has not ({_first(extra)}): "
            "it is another model, or one newer than this pack"
        )
    packed = {key.rpartition(".")[0] + ".weight" for key in state if is_quantization(key)}
    for key, like in expected.items():
        if state[key].shape != like.shape and key not in packed:
            raise ValueError(
                f"{name} has {key} as {list(state[key].shape)} where its other tensors ask for "
                f"{list(like.shape)}: it mixes two models, download it again"
            )


def detect_variant(name: str, choice: str, config: AceStepConfig, declared: Mapping[str, Any]) -> str | None:
    """Return the variant, a key of PRESETS: the choice, else what config.json and the name say, else None.

    is_turbo outranks the name, which users change; the name decides what is_turbo leaves open. An undistilled
    model of no known name is called base: its preset is sft's.

    Raises: ValueError for an unknown choice, or one of the other size than the weights.
    """
    if choice != AUTO:
        return _chosen_variant(name, choice, config)
    version = declared.get("model_version")
    named = [variant for variant in (_named_variant(name), _named_variant(str(version))) if variant]
    is_turbo = declared.get("is_turbo")
    if is_turbo is None:
        return named[0] if named else None
    fitting = [variant for variant in named if PRESETS[variant].is_turbo == is_turbo]
    return fitting[0] if fitting else ("turbo" if is_turbo else "base")


def _chosen_variant(name: str, choice: str, config: AceStepConfig) -> str:
    variant = choice.removeprefix(XL)
    if variant not in PRESETS:
        raise ValueError(f"variant {choice!r} is unknown: choose one of {', '.join(VARIANTS)}")
    expected = "XL" if choice.startswith(XL) else "2B"
    actual = "XL" if config.decoder.width != config.encoder.width else "2B"
    if actual != expected:
        raise ValueError(
            f"{name} holds {actual} weights where variant {choice!r} expects {expected}: choose a file of "
            "that size, or variant auto"
        )
    return variant


def _named_variant(name: str) -> str | None:
    """Return the variant a name says, None where it says none or, as a merge's does, both kinds."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    named = [variant for word, variant in VARIANT_WORDS.items() if word in words]
    kinds = {PRESETS[variant].is_turbo for variant in named}
    return named[0] if len(kinds) == 1 else None


@contextmanager
def _needs_tensors(name: str) -> Iterator[None]:
    """Turn a look at a missing tensor into a sentence about the file."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{name} lacks {missing.args[0]}: it looks incomplete, download it again") from None


def _attention_shape(state: Mapping[str, Tensor], layer: str, norm: str, declared: Mapping[str, Any]) -> AttentionShape:
    """Return the sizes of the transformer that a layer belongs to; norm is its first one's name."""
    head_dim = state[f"{layer}.self_attn.q_norm.weight"].shape[0]
    settings: dict[str, Any] = {
        "eps": declared.get("rms_norm_eps"),
        "rope_theta": declared.get("rope_theta") or (declared.get("rope_parameters") or {}).get("rope_theta"),
        "window": declared.get("sliding_window"),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    if declared.get("use_sliding_window") is False:
        settings["window"] = None
    return AttentionShape(
        width=state[f"{layer}.{norm}.weight"].shape[0],
        mlp_width=state[f"{layer}.mlp.gate_proj.weight"].shape[0],
        n_heads=state[f"{layer}.self_attn.q_proj.weight"].shape[0] // head_dim,
        n_kv_heads=state[f"{layer}.self_attn.k_proj.weight"].shape[0] // head_dim,
        head_dim=head_dim,
        **settings,
    )


def _n_layers(state: Mapping[str, Tensor], stack: str) -> int:
    """Return one more than the highest layer number; holes below it come out as missing tensors."""
    numbers = [key[len(stack) + 1 :].partition(".")[0] for key in state if key.startswith(f"{stack}.")]
    highest = max((int(number) for number in numbers if number.isdigit()), default=None)
    if highest is None:
        raise KeyError(f"{stack}.0")
    return highest + 1


def _windowed_layers(n_layers: int, declared: Mapping[str, Any]) -> tuple[bool, ...]:
    types = declared.get("layer_types")
    if not types or len(types) != n_layers:  # a wrong length shows in num_hidden_layers
        return alternating(n_layers)
    return tuple(kind == WINDOWED for kind in types)


def _acestep_sizes(config: AceStepConfig) -> dict[str, int]:
    """Return the sizes under config.json's names."""
    return {
        **_layer_sizes("", config.decoder),
        **_layer_sizes("encoder_", config.encoder),
        "num_hidden_layers": len(config.windowed_layers),
        "text_hidden_dim": config.text_width,
        "num_lyric_encoder_hidden_layers": config.n_lyric_layers,
        "num_timbre_encoder_hidden_layers": config.n_timbre_layers,
        "num_attention_pooler_hidden_layers": config.n_pooler_layers,
    }


def _layer_sizes(prefix: str, shape: AttentionShape) -> dict[str, int]:
    return {
        f"{prefix}hidden_size": shape.width,
        f"{prefix}intermediate_size": shape.mlp_width,
        f"{prefix}num_attention_heads": shape.n_heads,
        f"{prefix}num_key_value_heads": shape.n_kv_heads,
        f"{prefix}head_dim": shape.head_dim,
    }


def _compare(name: str, declared: Mapping[str, Any], actual: Mapping[str, int]) -> None:
    """Check that config.json, as far as it speaks of a size, says what the shapes do."""
    for key, size in actual.items():
        claim = declared.get(key)
        if claim is None or claim == size:
            continue
        if key in STACKS and size < claim:
            raise ValueError(
                f"{name} has {size} of {claim} {STACKS[key]} layers: it looks incomplete, download it again"
            )
        raise ValueError(
            f"{name} contradicts itself: config.json says {key} is {claim}, the weights have {size}; download it again"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
