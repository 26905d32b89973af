"""From an encoded song to latents: condition, guidance, the change of conditions part-way, what is kept, the loop.

Start reading here. `condition` turns a song into the DiT's inputs, `run` calls the DiT, `guidance` joins its two
predictions, `sample` goes from noise to data. A host with a velocity of its own calls `solve` (nodes/host/guider.py).
Source: ace-step/ACE-Step-1.5, `acestep/models/{turbo,base}/modeling_*.py`, `generate_audio`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..models.acestep import AceStep
from .condition import Encoding
from .guidance import Guidance, Guide
from .morph import Morph, MorphGuide, morph
from .preserve import Preserve
from .run import Branch, Run
from .sample import Evaluation, FreshNoise, SamplerSettings, Velocity, sample

OnStep = Callable[[int, Tensor], None]  # index of the step, predicted data [B, T, 64]; raising ends the generation


@dataclass(frozen=True, eq=False)
class Job:
    """What a batch of takes is sampled from: everything but the model and the prompt."""

    rows: tuple[int, ...]  # the plan of each take
    noise: Tensor  # [B, T, 64] float32
    levels: tuple[float, ...]  # noise levels, falling to 0
    guidance: Guidance = field(default_factory=Guidance)
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    start: Tensor | None = None  # [B, T, 64] clean latents to begin from
    preserve: Preserve | None = None  # what stays of a source
    fresh_noise: FreshNoise | None = None  # for the sde solver; a morph draws all of its noise from it
    morph: Morph | None = None


@torch.inference_mode()
def generate(
    model: AceStep,
    encoding: Encoding,
    silence: Tensor,
    job: Job,
    *,
    origin: Encoding | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return latents [B, T, 64] float32 of every take of a job, computed where silence [1, n, 64] is, in its dtype.

    A task's latents are its window (`Task.assemble` makes them whole). origin: the prompt that a morph comes from.
    """
    run = Run(model, silence)
    run.expect([level for level in job.levels if level > 0])
    return solve(job, guided_velocity(run, encoding, job, origin), silence.device, on_step)


def guided_velocity(run: Run, encoding: Encoding, job: Job, origin: Encoding | None = None) -> Velocity:
    """Return the velocity of a job's takes: one forward a call, of both predictions where guidance applies.

    Raises ValueError for a morph without the prompt that it comes from.
    """
    if job.morph is not None and origin is None:
        raise ValueError('a morph needs the prompt that it comes from: give it as "origin"')
    guide = Guide(job.guidance) if job.morph is None else MorphGuide(job.guidance)
    n_steps = len(job.levels) - 1

    def velocity(x: Tensor, at: Evaluation) -> Tensor:
        prompt = origin if at.origin and origin is not None else encoding
        rows = tuple(row % prompt.n_plans for row in job.rows)
        branch = Branch(prompt, rows, plain=at.step >= prompt.turns_plain_at(n_steps))
        latents = x.to(run.silence.dtype)
        if not job.guidance.applies_at(at.t):
            return run.velocity(latents, at.t, [branch]).float()
        both = run.velocity(torch.cat((latents, latents)), at.t, [branch, replace(branch, null=True)]).float()
        cond, uncond = both.chunk(2)
        return guide(cond, uncond, x, at)

    return velocity


def solve(job: Job, velocity: Velocity, device: torch.device, on_step: OnStep | None = None) -> Tensor:
    """Return the latents of a job by any velocity, with everything else of it on a device."""
    draw = job.fresh_noise
    fresh = None if draw is None else lambda: draw().to(device)
    start = None if job.start is None else job.start.to(device)
    preserve = None if job.preserve is None else job.preserve.to(device)
    if job.morph is not None:
        if start is None or fresh is None:
            raise ValueError("a morph needs a song to begin from and a source of noise")
        return morph(velocity, start, job.levels, job.morph, job.settings, fresh, preserve=preserve, on_step=on_step)
    noise = job.noise.to(device)
    return sample(
        velocity, noise, job.levels, job.settings, start=start, preserve=preserve, fresh_noise=fresh, on_step=on_step
    )
