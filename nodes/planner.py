"""The planner under ComfyUI's memory management: loaded for each use, with room for its cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..acestep_core.constants import CODE_RATE, MAX_DURATION_S
from ..acestep_core.models.files import read_planner
from ..acestep_core.models.qwen3 import Qwen3
from ..acestep_core.planner.decode import MAX_TEXT_TOKENS, OnToken, cache_bytes
from ..acestep_core.planner.plan import Planner
from ..acestep_core.text import load_tokenizer
from . import host

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
    file = read_planner(path, host.read)
    build, dtype, load_device, offload_device = host.text_encoder_build()
    model = Qwen3(file.config, build)
    patcher = host.patcher(model, load_device, offload_device)
    host.fill(patcher, model, file.state)
    tokenizer = load_tokenizer(file.tokenizer_folder or host.TOKENIZER_FOLDER)
    return PlannerModel(Planner(model, tokenizer, dtype, load_device), patcher)


def token_progress() -> OnToken:
    """Return a function that shows the tokens done and their speed, and raises when the user cancelled."""
    return host.tile_progress()
