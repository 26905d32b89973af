"""What PEFT's adapter_config.json says of an adapter: the scale of each module, held against its tensors."""

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
    """The config of one file; said is empty where there is none, and then every scale is 1.

    is_beside: said is adapter_config.json itself. diffusers' copy in the metadata names modules its own way.
    """

    name: str
    said: Mapping[str, Any]
    is_beside: bool

    def scale(self, path: str, rank: int | None) -> float:
        """Return alpha by rank for a module, or by the root of rank where rsLoRA was on."""
        alpha = self._of_module("alpha_pattern", path, self.said.get("lora_alpha", self.said.get("alpha")))
        rank = rank or self._rank(path)
        if alpha is None or not rank:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.said.get("use_rslora") else rank)

    def check(self, changes: Mapping[str, Change]) -> None:
        """Check that the tensors are what the config says.

        Raises: ValueError that names the first difference.
        """
        if not self.is_beside:
            return
        self._check_kind(changes)
        targets = self.said.get("target_modules")
        last_words = {str(target).rpartition(".")[2] for target in targets} if isinstance(targets, list) else None
        for weight, change in changes.items():
            path = weight.removesuffix(".weight")
            rank = self._rank(path)
            if rank is not None and change.factors.rank not in (None, rank):
                raise self._contradiction(f"rank {rank} for {path}", f"have {change.factors.rank}")
            if last_words and not isinstance(change.factors, Full) and path.rpartition(".")[2] not in last_words:
                raise self._contradiction(f"target_modules {', '.join(sorted(last_words))}", f"change {path}")

    def _check_kind(self, changes: Mapping[str, Change]) -> None:
        kind = str(self.said.get("peft_type", "LORA")).upper()
        factors = [change.factors for change in changes.values() if not isinstance(change.factors, Full)]
        if odd := [each for each in factors if not isinstance(each, PEFT_TYPES[kind])]:
            raise self._contradiction(f"peft_type {kind}", f"are those of a {type(odd[0]).__name__} adapter")
        has_magnitudes = any(change.magnitude is not None for change in changes.values())
        says_dora = bool(self.said.get("use_dora", False))
        if says_dora != has_magnitudes:
            raise self._contradiction(
                f"use_dora {str(says_dora).lower()}", f"have {'' if has_magnitudes else 'no '}magnitudes"
            )

    def _contradiction(self, said: str, found: str) -> ValueError:
        return ValueError(
            f"{self.name} contradicts itself: adapter_config.json says {said}, the tensors {found}; copy both files "
            "from the same save"
        )

    def _rank(self, path: str) -> int | None:
        return self._of_module("rank_pattern", path, self.said.get("r"))

    def _of_module(self, pattern: str, path: str, default: Any) -> Any:
        """Return a module's own value where one is given for the end of its path, else the default.

        Source: huggingface/peft, `src/peft/utils/other.py`, get_pattern_key.
        """
        for end, value in (self.said.get(pattern) or {}).items():
            if re.fullmatch(rf"(.*\.)?({renamed(end)})", path.removeprefix(DECODER)):
                return value
        return default
