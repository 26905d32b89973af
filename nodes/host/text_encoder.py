"""The text encoder under ComfyUI's memory management: a song's prompt and lyrics to states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...acestep_core.checkpoints.read import Qwen3File, read_text_encoder
from ...acestep_core.checkpoints.scaled import dequantized
from ...acestep_core.models.conditioner import Tokens
from ...acestep_core.models.layers import layer_bytes
from ...acestep_core.models.qwen3 import Qwen3
from ...acestep_core.song.tokens import Ids, load_tokenizer
from . import folders, memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Qwen3-Embedding and its tokenizer. ComfyUI finds the model through `patcher`."""

    model: Qwen3
    tokenizer: Tokenizer
    patcher: Any
    dtype: torch.dtype

    def states(self, text: Ids) -> Tokens:
        """Return the last hidden states of token ids, for the caption."""
        return self._tokens(text, lambda ids: self.model(ids, self.dtype))

    def embeddings(self, text: Ids) -> Tokens:
        """Return bare token embeddings of token ids, for the lyrics."""
        return self._tokens(text, lambda ids: self.model.embed(ids, self.dtype))

    def _tokens(self, text: Ids, encode) -> Tokens:
        device = memory.load_for(
            self.patcher, layer_bytes(self.model.config.shape, text.ids.numel(), self.dtype.itemsize)
        )
        return Tokens(
            memory.to_intermediate(encode(text.ids.to(device))), memory.to_intermediate_device(text.attention_mask)
        )


def load_text_encoder(path: Path) -> TextEncoder:
    """Return the text encoder of a file or folder."""
    return TextEncoder(*load_qwen3(read_text_encoder(path, folders.read)))


def load_qwen3(file: Qwen3File) -> tuple[Qwen3, Tokenizer, Any, torch.dtype]:
    """Return a Qwen3 with its weights under ComfyUI's patcher: model, tokenizer, patcher, computing dtype."""
    build, dtype, load_device, offload_device = memory.text_encoder_build()
    model = Qwen3(file.config, build)
    patcher = memory.patcher(model, load_device, offload_device)
    memory.fill(patcher, model, dequantized(file.name, file.state, dtype))
    return model, load_tokenizer(file.tokenizer_folder or folders.TOKENIZER_FOLDER), patcher, dtype
