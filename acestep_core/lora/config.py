"""PEFT's adapter_config.json: the scale of each module, and whether the config matches the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .change import Change, Full, Hadamard, Kronecker, LowRank
from .names import DECODER, renamed

PEFT_TYPES = {"LORA": (LowRank,), "LOHA": (Hadamard,), "LOKR": (Kronecker,)}


@dataclass(frozen=True)
class PeftConfig:
    """The config of one adapter file."""

    name: str  # of the file, for messages
    values: Mapping[str, Any]  # empty where there is no config, and then every scale is 1
    is_beside: bool  # whether it is adapter_config.json itself; copies in the metadata name modules as diffusers does

    def scale(self, path: str, rank: int | None) -> float:
        """Return alpha / rank of a module, or alpha / √rank if it was trained with rsLoRA."""
        alpha = self._of_module("alpha_pattern", path, self.values.get("lora_alpha", self.values.get("alpha")))
        rank = rank or self._rank(path)
        if alpha is None or not rank:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.values.get("use_rslora") else rank)

    def check(self, changes: Mapping[str, Change]) -> None:
        """Check that the tensors agree with the config.

        Raises: ValueError that names the first difference.
        """
        if not self.is_beside:
            return
        self._check_kind(changes)
        targets = self.values.get("target_modules")
        last_words = {str(target).rpartition(".")[2] for target in targets} if isinstance(targets, list) else None
        for weight, change in changes.items():
            path = weight.removesuffix(".weight")
            rank = self._rank(path)
            if rank is not None and change.factors.rank not in (None, rank):
                raise self._contradiction(f"rank {rank} for {path}", f"have {change.factors.rank}")
            if last_words and not isinstance(change.factors, Full) and path.rpartition(".")[2] not in last_words:
                raise self._contradiction(f"target_modules {', '.join(sorted(last_words))}", f"change {path}")

    def _check_kind(self, changes: Mapping[str, Change]) -> None:
        kind = str(self.values.get("peft_type", "LORA")).upper()
        factors = [change.factors for change in changes.values() if not isinstance(change.factors, Full)]
        if other := [each for each in factors if not isinstance(each, PEFT_TYPES[kind])]:
            raise self._contradiction(f"peft_type {kind}", f"are those of a {type(other[0]).__name__} adapter")
        has_magnitudes = any(change.magnitude is not None for change in changes.values())
        wants_dora = bool(self.values.get("use_dora", False))
        if wants_dora != has_magnitudes:
            raise self._contradiction(
                f"use_dora {str(wants_dora).lower()}", f"have {'' if has_magnitudes else 'no '}magnitudes"
            )

    def _contradiction(self, config: str, tensors: str) -> ValueError:
        return ValueError(
            f"{self.name} contradicts itself: adapter_config.json says {config}, the tensors {tensors}; copy both "
            "files from the same save"
        )

    def _rank(self, path: str) -> int | None:
        return self._of_module("rank_pattern", path, self.values.get("r"))

    def _of_module(self, pattern: str, path: str, default: Any) -> Any:
        """Return the value of the first pattern that matches the end of a module's path, else the default.

        Source: huggingface/peft, `src/peft/utils/other.py`, get_pattern_key.
        """
        for end, value in (self.values.get(pattern) or {}).items():
            if re.fullmatch(rf"(.*\.)?({renamed(end)})", path.removeprefix(DECODER)):
                return value
        return default
