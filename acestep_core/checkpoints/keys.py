"""Tensor names in all file layouts, as tables, and their translation to ours.

Our names are the official checkpoint's. ComfyUI's files add a prefix; a diffusers pipeline spreads the model over
folders and renames some layers. The two namings of the VAE are in vae_keys.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

# Rows of the embedding table tell the text encoder from the planner, which adds 65,535 audio code tokens.
TEXT_ENCODER_TOKENS = 151_669
PLANNER_TOKENS = 217_204
# What programs put in front of all names when they save a model from inside something else: DistributedDataParallel,
# torch.compile, Lightning and other trainers, one in another too.
_WRAPPERS = re.compile(r"((net|module|_orig_mod|model)\.)*")


@dataclass(frozen=True)
class Part:
    """One model that a file may hold."""

    title: str  # for messages
    look: str  # what looks_like calls it
    probes: tuple[str, ...]  # tensor names, at least one of which is always present
    roots: tuple[str, ...]  # what the names of its tensors begin with
    prefixes: tuple[str, ...]  # what the layouts add in front of the names, behind any wrappers
    example: str  # the file that a message suggests instead of a wrong one


DIT = Part(
    title="ACE-Step 1.5 diffusion model",
    look="an ACE-Step 1.5 diffusion model",
    probes=("encoder.lyric_encoder.layers.0.input_layernorm.weight",),
    roots=("decoder.", "encoder.", "tokenizer.", "detokenizer.", "null_condition_emb"),
    prefixes=("", "diffusion_model."),
    example="acestep_v1.5_turbo.safetensors",
)
TEXT_ENCODER = Part(
    title="ACE-Step 1.5 text encoder",
    look="the ACE-Step 1.5 text encoder",
    probes=("embed_tokens.weight",),
    roots=("embed_tokens.", "layers.", "norm."),
    prefixes=("", "text_encoders.qwen3_06b.transformer.model."),
    example="qwen_0.6b_ace15.safetensors",
)
PLANNER = Part(
    title="ACE-Step 1.5 planner (5 Hz LM)",
    look="an ACE-Step 1.5 planner (5 Hz LM)",
    probes=("embed_tokens.weight",),
    roots=("embed_tokens.", "layers.", "norm.", "lm_head."),
    prefixes=("", "text_encoders.qwen3_2b.transformer.model.", "text_encoders.qwen3_4b.transformer.model."),
    example="qwen_1.7b_ace15.safetensors",
)
# In transformers' files the LM head is beside the body, which is called BODY.
HEAD, BODY = "lm_head.", "model."
LM_HEAD = f"{HEAD}weight"
VAE = Part(
    title="ACE-Step 1.5 VAE",
    look="an audio VAE",
    probes=("decoder.block.0.snake1.beta", "decoder.layers.1.layers.0.beta"),
    roots=("encoder.", "decoder."),
    prefixes=("", "vae."),
    example="ace_1.5_vae.safetensors",
)

# Folders of a diffusers pipeline, and what our names have in front of theirs.
# Source: huggingface/diffusers, `scripts/convert_ace_step_to_diffusers.py`.
DIFFUSERS_FOLDERS = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
DIFFUSERS_NAMES = {
    ".to_q.": ".q_proj.",
    ".to_k.": ".k_proj.",
    ".to_v.": ".v_proj.",
    ".to_out.0.": ".o_proj.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
    ".proj_in_conv.": ".proj_in.1.",
    ".proj_out_conv.": ".proj_out.1.",
}
# Tensors that diffusers keeps in its condition encoder and the official checkpoint at the top level.
SILENCE = "silence_latent"
DIFFUSERS_STRAYS = {f"encoder.{name}": name for name in ("null_condition_emb", SILENCE)}

# Tensors that belong to a quantised weight. Source: Comfy-Org/ComfyUI, `comfy/ops.py`, `comfy/utils.py`.
SCALED_FP8 = "scaled_fp8"
QUANTIZATION = (
    ".comfy_quant",
    ".weight_scale",
    ".weight_scale_2",
    ".input_scale",
    ".pre_quant_scale",
    ".scale_weight",
    ".scale_input",
)

# A part of a tensor name that only one kind of file has, and that kind; the first match counts.
MARKS = {
    "genre_embedder.": "ACE-Step 1.0, an older model",
    ".lora_A.": "a LoRA adapter",
    ".lora_down.": "a LoRA adapter",
    ".lokr_w1": "a LoKr adapter",
    ".hada_w1_a": "a LoHa adapter",
    "proj_in_conv.": "one part of a diffusers pipeline, whose folder is to be chosen as a whole",
    "lyric_encoder.layers.0.": DIT.look,
    "decoder.block.0.snake1.": VAE.look,
    "decoder.layers.1.layers.0.beta": VAE.look,
    "model.diffusion_model.input_blocks.": "a Stable Diffusion checkpoint",
    "double_blocks.0.": "a Flux model",
    "decoder.up.0.block.0.": "an image VAE",
    "text_model.encoder.": "a CLIP text encoder",
    "encoder.block.0.layer.0.": "a T5 text encoder",
}


def select(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return a part's tensors under our names, None if the file does not have the part.

    Tensors of other parts are not touched: a lazy mapping need not load them.
    """
    prefix = prefix_of(part, tensors)
    if prefix is None:
        return None
    own = tuple(prefix + root for root in (*part.roots, SCALED_FP8))
    state = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(own)}
    if part is PLANNER:
        outside = prefix.removesuffix(BODY)
        state |= {key.removeprefix(outside): tensors[key] for key in tensors if key.startswith(outside + HEAD)}
    return state


def prefix_of(part: Part, names: Iterable[str]) -> str | None:
    """Return what stands in front of the names of a part's tensors, wrappers and all; None without the part."""
    found = {name.removesuffix(probe) for name in names for probe in part.probes if name.endswith(probe)}
    for prefix in part.prefixes:
        for whole in sorted(found, key=len):
            if whole.endswith(prefix) and _WRAPPERS.fullmatch(whole.removesuffix(prefix)):
                return whole
    return None


def from_diffusers(folder: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one folder of a diffusers pipeline under our names."""
    renamed = {}
    for key in tensors:
        name = DIFFUSERS_FOLDERS[folder] + key
        for theirs, ours in DIFFUSERS_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[DIFFUSERS_STRAYS.get(name, name)] = tensors[key]
    return renamed


def is_quantization(key: str) -> bool:
    """Tell whether a tensor belongs to a quantised weight, not to the model."""
    return key == SCALED_FP8 or key.endswith(QUANTIZATION)


def looks_like(tensors: Mapping[str, Tensor]) -> str:
    """Return a guess, for an error message, at what model a file holds."""
    for mark, kind in MARKS.items():
        if any(mark in key for key in tensors):
            return kind
    for key in tensors:
        if key.endswith("embed_tokens.weight"):
            return _language_model(tensors[key].shape[0])
    return "a model unknown here"


def _language_model(n_tokens: int) -> str:
    known = {
        TEXT_ENCODER_TOKENS: TEXT_ENCODER.look,
        PLANNER_TOKENS: PLANNER.look,
    }
    return known.get(n_tokens, f"another language model, of {n_tokens:,} tokens")
