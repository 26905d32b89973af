"""What is settled about takes before a model is asked: seeds, noise, levels, where each begins and what it keeps.

All checks that need no model run here, so that a mistake costs no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..checkpoints.presets import PRESETS, Resolved, resolve
from ..constants import LATENT_CHANNELS
from ..types import Take, in_turn, take_seeds
from .generate import Job
from .guidance import Guidance
from .morph import Morph
from .options import Options, Retake
from .preserve import NOISE_MASK, Preserve
from .sample import FreshNoise, SamplerSettings
from .schedule import custom_schedule, schedule, start_at
from .tasks import Task

MORPH_TASKS = ("text2music", "cover", "cover-nofsq")


@dataclass(frozen=True, eq=False)
class Request:
    """What a user asks of the sampler. 0 in n_steps, shift and guidance means the checkpoint's preset."""

    seed: int = 0
    seeds: tuple[int, ...] = ()  # one for each take, in place of seed, seed + 1, ...
    takes_per_plan: int = 1
    n_steps: int = 0
    shift: float = 0.0
    guidance: float = 0.0
    options: Options = field(default_factory=Options)


@dataclass(frozen=True, eq=False)
class Takes:
    """Everything the takes of one request are sampled from. Tensors have a row for each take."""

    takes: tuple[Take, ...]
    seeds: tuple[int, ...]
    n_frames: int
    levels: tuple[float, ...]
    resolved: Resolved  # steps, shift and guidance with every preset filled in
    guidance: Guidance
    settings: SamplerSettings
    options: Options
    start: Tensor | None  # clean latents to begin from
    preserve: Preserve | None

    keeps_all: bool = False  # there is nothing to generate

    @property
    def rows(self) -> Tensor:
        """Return the plan of each take."""
        return torch.tensor([take.plan for take in self.takes])

    def job(self, part: slice = slice(None)) -> Job:
        """Return what the takes of `part` are sampled from; the same for a take in whichever part it is."""
        morph, others = self.options.morph, take_seeds(self.options.retake.seed, len(self.takes))[part]
        seeds = self.seeds[part]
        draw = noise_of(seeds, others, self.options.retake, self.n_frames)
        return Job(
            rows=tuple(take.plan for take in self.takes[part]),
            noise=draw(),
            levels=self.levels,
            guidance=self.guidance,
            settings=self.settings,
            start=None if self.start is None else self.start[part],
            preserve=None if self.preserve is None else self.preserve.rows(part),
            # A morph begins from a song, so it draws the first noise itself.
            fresh_noise=draw if morph is None else noise_of(seeds, others, self.options.retake, self.n_frames),
            morph=morph,
        )

    @property
    def summary(self) -> str:
        """Return the settings in one line."""
        n_custom = len(self.levels) - 1
        what = f"{n_custom} custom timesteps" if self.options.timesteps else self.resolved.summary
        return f"{what}, {self.options.summary(self.resolved.guidance > 1)}"


def prepare(
    request: Request,
    variant: str,
    task: Task,
    n_plans: int,
    latents: Tensor,
    silence: Tensor,
    noise_mask: Tensor | None = None,
) -> Takes:
    """Return the takes that a request makes of every plan of a task, plan by plan.

    latents [1 or B, T, 64] give the length; where they hold a song, a morph or the noise mask [1 or B, T] uses it.
    silence [1, n, 64] belongs to the checkpoint.

    Raises ValueError for settings out of range, a task the variant was not trained on, or latents of another length.
    """
    n_frames, options = latents.shape[1], request.options
    check_task(task, variant, n_frames)
    resolved = resolve(variant, request.n_steps, request.shift, request.guidance)
    levels = _levels(variant, task, resolved, options)
    plans = [plan for plan in range(n_plans) for _ in range(request.takes_per_plan)]
    seeds = take_seeds(request.seed, len(plans), request.seeds)
    n_steps = len(levels) - 1
    rows = torch.tensor(plans)
    source = task.source_in_window(n_frames, silence.cpu()) if task.sources else latents
    # Latents as many as takes belong to one each; else every plan has its own.
    items = torch.arange(len(plans)) if not task.sources and len(latents) == len(plans) else rows
    preserve = _preserve(source, task, noise_mask, items)
    keeps_all = task.keeps_all or (preserve is not None and not bool(preserve.inside.any()))
    # Where nothing is generated no seed made it.
    takes = tuple(
        Take(None if keeps_all else seed, plan, n_steps, task.track_of(plan))
        for seed, plan in zip(seeds, plans, strict=True)
    )
    return Takes(
        takes=takes,
        seeds=seeds,
        n_frames=n_frames,
        levels=levels,
        resolved=resolved,
        guidance=options.guidance(resolved.guidance),
        settings=replace(options.settings, heun_last=not PRESETS[variant].is_turbo),
        options=options,
        start=_start(latents, source, task, options.morph, rows),
        preserve=preserve,
        keeps_all=keeps_all,
    )


def noise_of(seeds: Sequence[int], others: Sequence[int], retake: Retake, n_frames: int) -> FreshNoise:
    """Return a source of noise [B, T, 64], each item from its own seed, mixed with that of its other seed."""
    draw, other = (_stream(each, n_frames) for each in (seeds, others))
    return (lambda: retake.mix(draw(), other())) if retake.variance else draw


def check_task(task: Task, variant: str, n_frames: int) -> None:
    """Raise ValueError for a task that a variant was not trained on, or latents of another length than the task's."""
    if task.rule.needs_base and variant != "base":
        raise ValueError(
            f"{task.name} needs a base model, this is {variant}; load acestep_v1.5_base, "
            'or set "variant" to base (xl-base) if this is one'
        )
    if task.sources and n_frames != task.window_frames:
        raise ValueError(
            f"the latent has {n_frames} frames, the {task.name} generates {task.window_frames}; "
            'connect the latent of "ACE-Step Encode Song"'
        )


def check_morph(task: Task, origin: Task, n_plans: int, n_origin_plans: int, n_frames: int) -> None:
    """Raise ValueError for a target and an origin prompt that no morph leads between."""
    for each in (task, origin):
        if each.name not in MORPH_TASKS:
            raise ValueError(
                f'a morph goes with a cover or with no task, not with {each.name}; disconnect it or "morph_from"'
            )
        if each.noise_strength:
            raise ValueError('a morph begins from the song itself; set "noise_strength" of the cover to 0')
        if each.sources and each.window_frames != n_frames:
            raise ValueError(
                f"the latent has {n_frames} frames, the {each.name} of the morph {each.window_frames}; "
                "use a cover of the same song for both prompts"
            )
    if n_origin_plans not in (1, n_plans):
        raise ValueError(
            f'"morph_from" has {n_origin_plans} plans, the conditioning {n_plans}; give it one, or as many'
        )


def _stream(seeds: Sequence[int], n_frames: int) -> Callable[[], Tensor]:
    """Return a source of noise [B, T, 64], the same on every machine: each item on the CPU from its own generator.

    The start of a run is the first draw, and `sde` goes on from there: PyTorch's CPU generator reads 32 bits of a
    seed, so an offset beyond those makes no second stream.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(n_frames, LATENT_CHANNELS, generator=g) for g in generators])


def _levels(variant: str, task: Task, resolved: Resolved, options: Options) -> tuple[float, ...]:
    """Return the noise levels: custom ones or the schedule's, from where a cover starts."""
    if options.timesteps:
        levels = custom_schedule(options.timesteps, PRESETS[variant].is_turbo)
    else:
        levels = schedule(resolved.n_steps, resolved.shift)
    return start_at(levels, 1 - task.noise_strength) if task.noise_strength else levels


def _start(latents: Tensor, source: Tensor, task: Task, morph: Morph | None, rows: Tensor) -> Tensor | None:
    """Return the clean latents that takes of these rows begin from, None where they begin from noise.

    latents: what the sampler was given; source: what the task works on. A cover's source replaces empty latents.
    """
    if morph is None:
        return in_turn(source, rows) if task.noise_strength else None
    if not latents.any():
        if not task.sources:
            raise ValueError(
                "a morph needs the song it begins from, this latent is empty; "
                'connect what "ACE-Step Encode Audio" or the sampler made'
            )
        latents = source
    n_plans = int(rows.max()) + 1
    if len(latents) not in (1, n_plans):
        raise ValueError(
            f"a morph takes one song or one for each plan, here {n_plans}, the latent holds {len(latents)}; "
            "pick from it or make as many plans"
        )
    return in_turn(latents, rows).float()


def _preserve(source: Tensor, task: Task, noise_mask: Tensor | None, rows: Tensor) -> Preserve | None:
    """Return what takes of these rows keep of a source [1 or B, T, 64]: what the task says, else the noise mask."""
    mask, keep = (task.mask_in_window(source.shape[1]), task.keep) if task.sources else (noise_mask, NOISE_MASK)
    if mask is None or keep is None:
        return None
    return Preserve(in_turn(source.float(), rows), in_turn(mask, rows).float(), keep)
