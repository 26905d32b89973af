"""The tokenizer that comes with ComfyUI, read from its files once for all tests: leave it as you found it."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer

from acestep_pack.acestep_core.song.tokens import load_tokenizer
from comfyui import comfyui_path

FOLDER = comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer"


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER)
