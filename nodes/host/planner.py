"""The planner under ComfyUI's memory management: made resident for each task, with room for its cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...acestep_core.checkpoints.read import read_planner
from ...acestep_core.planner.plan import Planner
from . import folders, memory
from .text_encoder import load_qwen3

GIB = 2**30


@dataclass(frozen=True, eq=False)
class PlannerModel:
    """A planner on the wire. ComfyUI finds the model through `patcher`."""

    core: Planner
    patcher: Any


def load_planner(path: Path) -> PlannerModel:
    """Return the planner of a file or folder."""
    model, tokenizer, patcher, dtype = load_qwen3(read_planner(path, folders.read))
    core = Planner(model, tokenizer, dtype, patcher.load_device, reserve=partial(reserve, patcher, dtype))
    return PlannerModel(core, patcher)


def reserve(patcher, dtype: torch.dtype, n_bytes: int) -> bool:
    """Make a planner resident as far as n_bytes beside its weights allow; tell whether a CUDA graph may read them.

    Raises RuntimeError where the device could not hold n_bytes even without any weights.
    """
    room = memory.capacity(patcher)
    if n_bytes > room:
        raise RuntimeError(
            f"the planner needs {n_bytes / GIB:.1f} GiB beside its weights and the device has {room / GIB:.1f}; "
            "make fewer plans at once or a shorter song"
        )
    memory.load_for(patcher, n_bytes)
    return memory.may_capture(patcher, dtype)
