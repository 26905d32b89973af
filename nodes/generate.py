"""One press of Run on the sampler: settings resolved, noise drawn, takes sampled in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..acestep_core.constants import LATENT_CHANNELS
from ..acestep_core.pipeline.condition import Encoding
from ..acestep_core.pipeline.options import Options
from ..acestep_core.pipeline.sample import Preserve
from ..acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
from ..acestep_core.pipeline.tasks import Keep, Task
from ..acestep_core.presets import PRESETS, Resolved, resolve
from ..acestep_core.types import Take, take_seeds
from . import host
from .guider import run
from .model import ROWS_KEY, AceStepModel, require_ours
from .sockets import ACESTEP_KEY, latent, latent_mask, latent_samples

# Offsets of the streams of noise drawn from one seed; the first noise is the seed's own.
SDE_STREAM = 1
# A noise mask keeps its source through every step, then fades over 0.4 s.
MASK_KEEP = Keep(injection=1.0, crossfade_frames=10, crossfade_s=0.0)


@dataclass(frozen=True, eq=False)
class Generation:
    """The takes, and what to tell about them."""

    latent: dict
    summary: str
    warnings: tuple[str, ...]


def generate(
    patcher,
    conditioning: list,
    latent_in: dict,
    seed: int,
    seeds: Sequence[int],
    takes_per_plan: int,
    n_steps: int,
    shift: float,
    guidance_scale: float,
    options: Options,
) -> Generation:
    """Return the takes of every plan of a conditioning.

    Raises ValueError for a foreign MODEL, a broken latent, or settings out of range, before anything is sampled.
    """
    model = require_ours(patcher)
    source = latent_samples(latent_in)
    n_frames = source.shape[1]
    encoding = conditioning[0][1].get(ACESTEP_KEY)
    task = None if encoding is None else encoding.task
    if task is not None:
        _check(task, model, n_frames)
    resolved = resolve(model.variant, n_steps, shift, guidance_scale)
    is_turbo = PRESETS[model.variant].is_turbo
    levels = (
        custom_schedule(options.timesteps, is_turbo)
        if options.timesteps
        else schedule(resolved.n_steps, resolved.shift)
    )
    if task is not None and task.noise_strength:
        levels = start_at(levels, 1 - task.noise_strength)
    takes = _takes(conditioning, seed, seeds, takes_per_plan, len(levels) - 1)
    rows = torch.tensor([take.plan for take in takes])
    settings = replace(options.settings, heun_last=not is_turbo)
    warnings = list(resolved.warnings)
    if task is not None:
        source = task.source_in_window(n_frames, model.silence.cpu())
    preserve = _preserve(source, task, latent_mask(latent_in, n_frames), rows)
    if task is None and preserve is None and bool(source.any()):
        warnings.append("the latent is not empty, but nothing here uses it: only its length counts")
    start = source[rows % len(source)] if task is not None and task.noise_strength else None
    if task is not None and task.keeps_all:
        samples = source[rows % len(source)]
        return _generation(samples, takes, task, "nothing to generate: the source as it is", warnings)

    size = _chunk_size(patcher, encoding, n_frames, len(takes), resolved.guidance > 1)
    n_chunks = -(-len(takes) // size)
    update = host.progress(n_chunks * (len(levels) - 1))
    done = []
    for first in range(0, len(takes), size):
        chunk = slice(first, first + size)
        first_step = len(done) * (len(levels) - 1)
        positive, negative = _conds(conditioning, [take.plan for take in takes[chunk]])
        done.append(
            run(
                patcher,
                positive,
                negative,
                torch.stack([noise(take.seed, n_frames) for take in takes[chunk]]),
                levels,
                options.guidance(resolved.guidance),
                settings,
                seed=takes[first].seed,
                start=None if start is None else start[chunk],
                preserve=None if preserve is None else _rows(preserve, chunk),
                fresh_noise=_stream([take.seed for take in takes[chunk]], n_frames),
                on_step=lambda index, first=first_step: update(first + index + 1),
            )
        )
    samples = torch.cat(done)
    if not torch.isfinite(samples).all():
        raise RuntimeError("sampling gave NaN or infinity; load the model with weight_dtype fp32 or bf16")
    return _generation(samples, takes, task, _summary(resolved, options, levels, takes, size), warnings)


def _generation(
    samples: torch.Tensor, takes: tuple[Take, ...], task: Task | None, summary: str, warnings: list[str]
) -> Generation:
    """Return the takes as a LATENT; those of a task as the whole canvas, the sources around what is new."""
    if task is not None:
        samples = task.assemble(samples, torch.tensor([take.plan for take in takes]))
    return Generation(latent(host.to_intermediate(samples), takes), summary, tuple(warnings))


def noise(seed: int, n_frames: int, stream: int = 0) -> torch.Tensor:
    """Return a take's noise [T, 64], the same on every machine: drawn on the CPU from its own generator."""
    generator = torch.Generator("cpu").manual_seed(seed + (stream << 54))
    return torch.randn(n_frames, LATENT_CHANNELS, generator=generator)


def _stream(seeds: Sequence[int], n_frames: int) -> Callable[[], torch.Tensor]:
    """Return a source of fresh noise [B, T, 64], each item from its own seed."""
    generators = [torch.Generator("cpu").manual_seed(seed + (SDE_STREAM << 54)) for seed in seeds]
    return lambda: torch.stack([torch.randn(n_frames, LATENT_CHANNELS, generator=g) for g in generators])


def _check(task: Task, model: AceStepModel, n_frames: int) -> None:
    """Raise ValueError for a checkpoint that was not trained on a task, or a latent of another length."""
    if task.rule.needs_base and model.variant != "base":
        raise ValueError(
            f"{task.name} needs a base model, this is {model.variant}; load acestep_v1.5_base, "
            'or set "variant" to base if this is one'
        )
    if n_frames != task.window_frames:
        raise ValueError(
            f"the latent has {n_frames} frames, the {task.name} generates {task.window_frames}; "
            'connect the latent of "Encode Song"'
        )


def _takes(conditioning: list, seed: int, seeds: Sequence[int], takes_per_plan: int, n_steps: int) -> tuple[Take, ...]:
    """Return what to make, plan by plan."""
    states, extras = conditioning[0]
    encoding: Encoding | None = extras.get(ACESTEP_KEY)
    n_plans = states.shape[0] if encoding is None else encoding.n_plans
    task = None if encoding is None else encoding.task
    plans = [plan for plan in range(n_plans) for _ in range(takes_per_plan)]
    every_seed = take_seeds(seed, len(plans), seeds)
    return tuple(
        Take(each, plan, n_steps, "" if task is None else task.track_of(plan))
        for each, plan in zip(every_seed, plans, strict=True)
    )


def _conds(conditioning: list, plans: Sequence[int]) -> tuple[list, list]:
    """Return the conditioning for a batch of takes, with its text and without."""
    with_rows = [[states, {**extras, ROWS_KEY: tuple(plans)}] for states, extras in conditioning]
    return with_rows, [[torch.zeros_like(states), extras] for states, extras in with_rows]


def _preserve(
    source: torch.Tensor, task: Task | None, noise_mask: torch.Tensor | None, rows: torch.Tensor
) -> Preserve | None:
    """Return what to keep of a source [1 or B, T, 64] in takes of these rows: what a task says, else a noise mask."""
    mask, keep = (noise_mask, MASK_KEEP) if task is None else (task.mask_in_window(source.shape[1]), task.keep)
    if mask is None or keep is None:
        return None
    return Preserve(
        source.float()[rows % len(source)], mask[rows % len(mask)].float(), keep.injection, keep.crossfade_frames
    )


def _rows(preserve: Preserve, chunk: slice) -> Preserve:
    return replace(preserve, source=preserve.source[chunk], mask=preserve.mask[chunk])


def _chunk_size(patcher, encoding: Encoding | None, n_frames: int, n_takes: int, guided: bool) -> int:
    """Return how many takes to sample at once: as many as the device has room for, at least one."""
    n_tokens = 0 if encoding is None else encoding.text.states.shape[1] + encoding.lyric.states.shape[1] + 1
    branches = 2 if guided else 1
    one = patcher.model.memory_required([branches, LATENT_CHANNELS, n_frames], {ACESTEP_KEY: [[branches, n_tokens]]})
    room = host.room_beside(patcher)
    return max(1, min(n_takes, int(room // one)))


def _summary(
    resolved: Resolved, options: Options, levels: Sequence[float], takes: Sequence[Take], chunk_size: int
) -> str:
    what = f"{len(levels) - 1} custom timesteps" if options.timesteps else resolved.summary
    chunks = f", {chunk_size} takes at a time" if chunk_size < len(takes) else ""
    return f"{what}, {options.settings.solver}{chunks}, seed {', '.join(str(take.seed) for take in takes)}"
