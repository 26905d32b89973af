"""The DiT under ComfyUI's calling convention: which condition, weights and frames a forward is for.

Everything that a generation computes once lives in a `Sampling`, made by a wrapper around core's outer sample
(`sampling`) and gone at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import comfy.patcher_extension
import torch

from ...acestep_core.models.acestep import AceStep, AceStepConfig
from ...acestep_core.models.layers import Build
from ...acestep_core.pipeline.run import Branch, Run, Window
from ...acestep_core.pipeline.sample import Evaluation
from ...acestep_core.types import plan_of

# In transformer_options, for as long as a sampling lasts.
SAMPLING_KEY = "acestep_sampling"
# In transformer_options of one call of the model.
CALL_KEY = "acestep_call"
# What core's and others' nodes leave in transformer_options, and this network does not read.
UNREAD = {
    "patches": "patches of attention or blocks (FreeU, HyperTile, a Hypernetwork, a style model)",
    "patches_replace": "replaced attention or blocks (SkipLayerGuidance, PerturbedAttentionGuidance, SAG)",
    "rope_options": "scaled rotary positions (ScaleROPE)",
    "optimized_attention_override": "another attention function",
}
# How far a noise level may be off by rounding.
LEVEL_ERROR = 1e-4


@dataclass(eq=False)
class Sampling:
    """What the forwards of one sampling share. Made by a wrapper around core's outer sample, gone at its end."""

    at: Evaluation | None = None  # the current evaluation of our own loop; None under core's samplers
    levels: tuple[float, ...] = ()  # the schedule of our own loop
    unread: set[str] = field(default_factory=set)  # keys of UNREAD that were met
    runs: dict[Network, Run] = field(default_factory=dict)  # one each, should a guider bring a second model

    def run_of(self, network: Network) -> Run:
        """Return the Run of a network, made at the first call."""
        if network not in self.runs:
            self.runs[network] = Run(network, network.silence)
            self.runs[network].expect([level for level in self.levels if level > 0])
        return self.runs[network]


@dataclass(frozen=True, eq=False)
class Call:
    """What one call of the model knows of the MODEL around the network."""

    weights: Hashable  # names the weights in force, as far as hooks change them within a sampling
    level_at: Callable[[float], float]  # the noise level at a share of a whole schedule


class BranchCond:
    """A Branch on its way through core's condition batching (the interface of comfy.conds)."""

    def __init__(self, branch: Branch, explicit_rows: bool, n_frames: int) -> None:
        self.branch, self.explicit_rows, self.n_frames = branch, explicit_rows, n_frames

    def process_cond(self, batch_size: int, area: list[int] | None = None, **_kwargs) -> BranchCond:
        """Return the cond for a batch: its own rows if they were given, else plans taken in turn.

        area: how many frames it is for, and from which on; of the window, where it sees one.
        """
        branch = self.branch
        if not self.explicit_rows:
            branch = replace(branch, rows=self._rows_of(batch_size))
        if area is not None:
            size, start = area
            branch = replace(branch, window=Window(self._frames[start : start + size], self.n_frames))
        return BranchCond(branch, self.explicit_rows, self.n_frames)

    def of_window(self, window, cond_retain: list[int], batch_size: int) -> BranchCond:
        """Return the cond for one of core's context windows, over time (dim 2) or over the batch (dim 0).

        Raises ValueError for one over channels.
        """
        if window.dim == 1:
            raise ValueError('context windows of an ACE-Step model go over time: set "dim" to 2')
        if window.dim == 0:
            rows = torch.tensor(self.branch.rows if self.explicit_rows else self._rows_of(batch_size))
            rows = window.get_tensor(rows, dim=0, retain_index_list=cond_retain)
            return BranchCond(replace(self.branch, rows=tuple(rows.tolist())), True, self.n_frames)
        frames = window.get_tensor(torch.tensor(self._frames), dim=0, retain_index_list=cond_retain)
        return BranchCond(
            replace(self.branch, window=Window(tuple(frames.tolist()), self.n_frames)),
            self.explicit_rows,
            self.n_frames,
        )

    def can_concat(self, other: BranchCond) -> bool:
        return self.branch.encoding.n_tokens == other.branch.encoding.n_tokens

    def concat(self, others: list[BranchCond]) -> tuple[Branch, ...]:
        return (self.branch, *(other.branch for other in others))

    def size(self) -> list[int]:
        return [len(self.branch.rows), self.branch.encoding.n_tokens]

    @property
    def _frames(self) -> tuple[int, ...]:
        return tuple(range(self.n_frames)) if self.branch.window is None else self.branch.window.frames

    def _rows_of(self, batch_size: int) -> tuple[int, ...]:
        return tuple(plan_of(item, None, self.branch.encoding.n_plans) for item in range(batch_size))


class Network(AceStep):
    """AceStep under ComfyUI's calling convention; `dtype` is the one its weights are kept in."""

    def __init__(self, config: AceStepConfig, build: Build, silence: torch.Tensor) -> None:
        super().__init__(config, build)
        self.dtype = build.dtype
        self.silence = silence

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        """Return the velocity [B, 64, T] of latents x [B, 64, T], within the wrappers of other nodes."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, control, options, **kwargs)

    def _forward(self, x, timestep, context, control, options, acestep=(), **_kwargs):
        """Return the velocity [B, 64, T] of latents x [B, 64, T]; acestep holds the batch's Branches."""
        sampling: Sampling = options.get(SAMPLING_KEY) or Sampling()
        call: Call = options[CALL_KEY]
        sampling.unread.update(key for key in UNREAD if options.get(key))
        t = float(options["sigmas"][0]) if sampling.at is None else sampling.at.t
        branches = [replace(branch, plain=_is_plain(branch, t, sampling, call, options)) for branch in acestep]
        v = sampling.run_of(self).velocity(x.transpose(1, 2), t, branches, call.weights)
        return v.transpose(1, 2)


def unread_warnings(sampling: Sampling) -> list[str]:
    """Return what was on the MODEL of a sampling without effect, in sentences."""
    return [f"the MODEL carries {UNREAD[key]}, which have no effect on ACE-Step" for key in sorted(sampling.unread)]


def _is_plain(branch: Branch, t: float, sampling: Sampling, call: Call, options: dict) -> bool:
    """Tell whether a step goes on by the text alone: by its number in our own loop, in core's by where it leads.

    Core may run a part of a schedule, so that only levels tell where in the whole a step is.
    """
    encoding = branch.encoding
    if sampling.at is not None:
        return sampling.at.step >= encoding.turns_plain_at(len(options["sample_sigmas"]) - 1)
    lower = [float(sigma) for sigma in options["sample_sigmas"] if sigma < t - 1e-6]
    return max(lower, default=0.0) < call.level_at(encoding.task.strength) - LEVEL_ERROR
