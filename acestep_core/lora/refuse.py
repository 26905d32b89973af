"""Refuses files that are not adapters of an ACE-Step 1.5 decoder, and says what each is and what would fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..checkpoints.keys import looks_like
from .config import PEFT_TYPES
from .names import exists
from .source import Source

# Part of a tensor name -> the only kind of model that has it. The first match counts.
KINDS = {
    "double_blocks": "an image model (Flux)",
    "single_blocks": "an image model (Flux)",
    "single_transformer_blocks": "an image model (Flux)",
    "add_q_proj": "an image model",
    "down_blocks": "an image model (Stable Diffusion)",
    "input_blocks": "an image model (Stable Diffusion)",
    "attn1": "an image model",
    "joint_blocks": "an image model (Stable Diffusion 3)",
    "lora_te": "the text encoder of an image model",
    "text_model": "the text encoder of an image model",
    "img_mod": "an image model",
    "speaker_embedder": "ACE-Step 1.0, an older model",
    "genre_embedder": "ACE-Step 1.0, an older model",
    "lyric_proj": "ACE-Step 1.0, an older model",
    "transformer_blocks": "ACE-Step 1.0, an older model",
}
# Only planners have 28 or 36 layers. Widths do not tell them apart: 1.7B and 4B are as wide as 2B and XL.
PLANNER_LAYERS = (28, 36)
PLANNER_MARKS = re.compile(r"(^|\.)(model\.layers\.\d+\.(self_attn|mlp)|embed_tokens|lm_head)(\.|$)")
FITTING = "choose one that was trained on ACE-Step 1.5's music model"


def refuse_others(source: Source, paths: Sequence[str]) -> None:
    """Check that a file is an adapter for some ACE-Step 1.5 decoder; paths are our paths of its modules.

    Raises: ValueError that says what it is instead.
    """
    _refuse_other_methods(source)
    if not paths:
        raise ValueError(
            f"{source.name} is not an adapter, it looks like {_likeness(source)}: an adapter has names such as "
            "lora_A or lokr_w1; load whole models with Load ACE-Step Model"
        )
    if _is_planner(source, paths):
        raise ValueError(
            f"{source.name} is an adapter for a language model such as the planner (5 Hz LM), not for the music "
            f"model: {FITTING}"
        )
    if not any(map(exists, paths)):
        keys = list(source.tensors)
        kind = next((kind for mark, kind in KINDS.items() if any(mark in key for key in keys)), "another model")
        raise ValueError(f"{source.name} is an adapter for {kind} (its first tensor is {keys[0]}): {FITTING}")


def _refuse_other_methods(source: Source) -> None:
    kind = str(source.config.get("peft_type", "LORA")).upper()
    if kind not in PEFT_TYPES:
        raise _other_method(source, kind)
    for key in source.tensors:
        if method := re.search(r"\.(oft|boft|ia3|vera)_", key):
            raise _other_method(source, method[1].upper())


def _other_method(source: Source, kind: str) -> ValueError:
    return ValueError(
        f"{source.name} is an adapter of kind {kind}, which is not supported: use LoRA, DoRA, LoKr or LoHa"
    )


def _likeness(source: Source) -> str:
    return looks_like(source.tensors) if source.tensors else "an empty file"


def _is_planner(source: Source, paths: Sequence[str]) -> bool:
    if any("cross_attn" in path for path in paths):
        return False
    if any(PLANNER_MARKS.search(path) for path in paths) or source.config.get("task_type") == "CAUSAL_LM":
        return True
    layers = [int(layer[1]) for path in paths if (layer := re.match(r"decoder\.layers\.(\d+)\.", path))]
    return bool(layers) and max(layers) + 1 in PLANNER_LAYERS
