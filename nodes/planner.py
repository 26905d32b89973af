"""The planner under ComfyUI's memory management: loaded for each use, with room for its cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..acestep_core.constants import CODE_RATE, MAX_DURATION_S
from ..acestep_core.models.files import read_planner
from ..acestep_core.planner.decode import MAX_TEXT_TOKENS, cache_bytes
from ..acestep_core.planner.plan import Planner
from . import host
from .text_encoder import load_qwen3

# Room for the prompt, thoughts included, beside what is generated behind it.
PROMPT_TOKENS = 2_048


@dataclass(frozen=True, eq=False)
class PlannerModel:
    """A planner on the wire. ComfyUI finds the model through `patcher`."""

    planner: Planner
    patcher: Any

    def ready(self, n_plans: int = 1, duration_s: float | None = None) -> Planner:
        """Return the planner, resident, with room to plan n_plans songs of a length with guidance."""
        seconds = MAX_DURATION_S if duration_s is None else duration_s
        n_positions = PROMPT_TOKENS + max(int(seconds * CODE_RATE), MAX_TEXT_TOKENS)
        config = self.planner.model.config
        host.load_for(self.patcher, cache_bytes(config, 2 * n_plans, n_positions, self.planner.dtype.itemsize))
        return self.planner


def load(path: Path) -> PlannerModel:
    """Return the planner of a file or folder."""
    model, tokenizer, patcher, dtype = load_qwen3(read_planner(path, host.read))
    return PlannerModel(Planner(model, tokenizer, dtype, patcher.load_device), patcher)
