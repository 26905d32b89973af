"""The planner under ComfyUI's memory management: loaded for each use, with room for its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...acestep_core.checkpoints.read import read_planner
from ...acestep_core.planner.plan import Planner
from . import folders, memory
from .text_encoder import load_qwen3

GIB = 2**30


@dataclass(frozen=True, eq=False)
class PlannerModel:
    """A planner on the wire. ComfyUI finds the model through `patcher`."""

    planner: Planner
    patcher: Any

    def ready(self, n_bytes: int = 0) -> Planner:
        """Return the planner, resident as far as n_bytes beside its weights allow.

        Raises RuntimeError where the device could not hold them even without any weights.
        """
        room = memory.capacity(self.patcher)
        if n_bytes > room:
            raise RuntimeError(
                f"the planner needs {n_bytes / GIB:.1f} GiB beside its weights and the device has {room / GIB:.1f}; "
                "make fewer plans at once or a shorter song"
            )
        memory.load_for(self.patcher, n_bytes)
        return self._captured if memory.may_capture(self.patcher, self.planner.dtype) else self.planner

    @cached_property
    def _captured(self) -> Planner:
        """The planner that captures. Kept, because a planner keeps its lexicon."""
        return replace(self.planner, capture=True)


def load_planner(path: Path) -> PlannerModel:
    """Return the planner of a file or folder."""
    model, tokenizer, patcher, dtype = load_qwen3(read_planner(path, folders.read))
    return PlannerModel(Planner(model, tokenizer, dtype, patcher.load_device), patcher)
