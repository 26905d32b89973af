"""The wires between nodes: our socket types, and the transposes between ComfyUI's layout and the core's.

ComfyUI's LATENT and MASK run [B, C, T]; the core runs [B, T, C]. Nothing else in the nodes transposes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy_api.v0_0_2 import io

from ...acestep_core.constants import LATENT_CHANNELS
from ...acestep_core.pipeline.condition import Encoding
from ...acestep_core.pipeline.options import Options
from ...acestep_core.pipeline.tasks import TEXT2MUSIC, Source, Task
from ...acestep_core.types import Take

TextEncoderSocket = io.Custom("ACESTEP_TEXT_ENCODER")
PlannerSocket = io.Custom("ACESTEP_PLANNER")
SongSocket = io.Custom("ACESTEP_SONG")
CodesSocket = io.Custom("ACESTEP_CODES")
ReferenceSocket = io.Custom("ACESTEP_REFERENCE")
TaskSocket = io.Custom("ACESTEP_TASK")
OptionsSocket = io.Custom("ACESTEP_OPTIONS")
ScoreSocket = io.Custom("ACESTEP_SCORE")

# Our entry in core's LATENT dict (tuple of Take) and in core's conditioning dict (Encoding).
ACESTEP_KEY = "acestep"
# In core's conditioning dict: the plan of each item of a batch, for our sampler's takes.
ROWS_KEY = "acestep_rows"
# In core's LATENT dict: the recording [B, 2, S] at 48 kHz that the latents were encoded from, and these latents:
# core's samplers hand every key on, beside samples that are no longer the recording's.
WAVEFORM_KEY = "acestep_waveform"
RECORDED_KEY = "acestep_recorded"
CATEGORY = "audio/ACE-Step"


@dataclass(frozen=True, eq=False)
class Prompt:
    """Core's CONDITIONING, unwrapped once."""

    conditioning: list
    states: torch.Tensor  # text states [1 or P, L, D] as core sees them
    encoding: Encoding | None  # None for a conditioning of core's own text encoder

    @classmethod
    def of(cls, conditioning: list) -> Prompt:
        """Return the prompt of a CONDITIONING."""
        states, extras = conditioning[0]
        return cls(conditioning, states, extras.get(ACESTEP_KEY))

    @property
    def task(self) -> Task:
        """Return what to do with which sources."""
        return TEXT2MUSIC if self.encoding is None else self.encoding.task

    @property
    def n_plans(self) -> int:
        """Return how many plans a batch of takes is spread over."""
        return self.states.shape[0] if self.encoding is None else self.encoding.n_plans

    @property
    def n_tokens(self) -> int:
        """Return how long the packed condition is, 0 for one of core's own."""
        return 0 if self.encoding is None else self.encoding.n_tokens

    def for_takes(self, plans: Sequence[int]) -> tuple[list, list]:
        """Return the CONDITIONING of takes of these plans, with its text and without."""
        rows = tuple(plan % self.n_plans for plan in plans)
        positive = [[states, {**extras, ROWS_KEY: rows}] for states, extras in self.conditioning]
        return positive, [[torch.zeros_like(states), extras] for states, extras in positive]


@dataclass(frozen=True, eq=False)
class SamplerOptions:
    """What the options socket carries: the core's options, and the prompt that their morph comes from."""

    options: Options
    morph_from: Prompt | None = None


def latent(samples: torch.Tensor, takes: tuple[Take, ...]) -> dict:
    """Return core's LATENT of samples [B, T, 64] and where each came from."""
    return {"samples": samples.transpose(1, 2).contiguous(), "type": "audio", ACESTEP_KEY: takes}


def recorded_latent(samples: torch.Tensor, waveform: torch.Tensor) -> dict:
    """Return core's LATENT of samples [B, T, 64] that remembers the recording [B, 2, S] they were encoded from."""
    made = latent(samples, ())
    return {**made, WAVEFORM_KEY: waveform.cpu(), RECORDED_KEY: made["samples"]}


def recording_of(value: dict) -> torch.Tensor | None:
    """Return the recording [B, 2, S] of core's LATENT, None without one or where its samples have changed since."""
    recorded = value.get(RECORDED_KEY)
    if recorded is not None and not torch.equal(recorded, value["samples"].to(recorded.device)):
        return None
    return value.get(WAVEFORM_KEY)


def latent_samples(value: dict) -> torch.Tensor:
    """Return the samples [B, T, 64] of core's LATENT.

    Raises ValueError for a latent of another model, an empty one, or one that holds NaN.
    """
    samples = value["samples"]
    if samples.ndim != 3 or samples.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"this latent is {tuple(samples.shape)}, ACE-Step 1.5 needs [takes, {LATENT_CHANNELS}, frames]; "
            'make it with "ACE-Step Encode Song"'
        )
    if not samples.numel():
        raise ValueError("this latent is empty: it has no takes or no frames")
    if not torch.isfinite(samples).all():
        raise ValueError("this latent holds NaN or infinity; run the step that made it again in another precision")
    return samples.transpose(1, 2)


def latent_takes(value: dict) -> tuple[Take, ...]:
    """Return where each item of core's LATENT came from; nothing for a foreign one."""
    takes = value.get(ACESTEP_KEY) or ()
    return takes if len(takes) == value["samples"].shape[0] else ()


def latent_rows(value: dict) -> torch.Tensor:
    """Return the plan of each item of core's LATENT; for a foreign one, the number of the item."""
    return torch.tensor([take.plan for take in latent_takes(value)] or range(value["samples"].shape[0]))


def latent_canvases(value: dict, task: Task) -> torch.Tensor:
    """Return the whole takes [B, T, 64] of core's LATENT; a foreign sampler gives back the window of a task only."""
    samples = latent_samples(value)
    whole = samples.shape[1] == task.n_frames
    return samples if whole else task.assemble(samples, latent_rows(value))


def latent_source(value: dict) -> Source:
    """Return core's LATENT as a source for a task, with its recording where it came from one.

    Raises ValueError as latent_samples does.
    """
    return Source(latent_samples(value), waveform=recording_of(value))


def frame_mask(mask: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Return core's MASK [B, 1, T] or [T] of any shape as [B, n_frames]; its last axis is time.

    Raises ValueError for a mask of another length.
    """
    rows = mask.reshape(-1, mask.shape[-1]) if mask.ndim < 3 else mask.float().mean(dim=tuple(range(1, mask.ndim - 1)))
    if rows.shape[-1] != n_frames:
        raise ValueError(
            f"the mask has {rows.shape[-1]} frames, the latent {n_frames}; "
            'make it with "ACE-Step Region" from this latent'
        )
    return rows.float().cpu()


def latent_mask(value: dict, n_frames: int) -> torch.Tensor | None:
    """Return core's noise mask as [B, n_frames], above 0 where to generate, or None without one."""
    mask = value.get("noise_mask")
    if mask is None:
        return None
    mask = mask.reshape(-1, 1, mask.shape[-1]).float()
    if mask.shape[-1] != n_frames:
        mask = torch.nn.functional.interpolate(mask, size=n_frames, mode="nearest-exact")
    return mask[:, 0].clamp(0, 1)
