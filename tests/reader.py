"""Stands for a text encoder where the words matter and the network does not. Needs ComfyUI's modules."""

from __future__ import annotations

import comfy.model_management
import torch

import vocabulary
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.song.tokens import Ids


class Reader:
    """Gives waves of the ids for states, the same for any caption when deaf, where ComfyUI keeps what travels."""

    def __init__(self, width: int = 48, deaf: bool = False) -> None:
        self.tokenizer = vocabulary.tokenizer()
        self.width = width
        self.deaf = deaf

    def states(self, text: Ids) -> Tokens:
        heard = Ids(torch.zeros_like(text.ids[:, :9]), text.attention_mask[:, :9]) if self.deaf else text
        return self.embeddings(heard)

    def embeddings(self, text: Ids) -> Tokens:
        states = torch.sin(text.ids[..., None] * torch.arange(1.0, self.width + 1))
        device = comfy.model_management.intermediate_device()
        return Tokens(states.to(device), text.attention_mask.to(device))
