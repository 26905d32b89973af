"""One press of Run on the sampler: settings resolved, noise drawn, takes sampled in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..acestep_core.constants import LATENT_CHANNELS
from ..acestep_core.pipeline.options import Options
from ..acestep_core.pipeline.sample import Preserve
from ..acestep_core.pipeline.schedule import custom_schedule, schedule
from ..acestep_core.presets import PRESETS, Resolved, resolve
from ..acestep_core.types import Take, take_seeds
from . import host
from .guider import run
from .model import ROWS_KEY, require_ours
from .sockets import ACESTEP_KEY, latent, latent_mask, latent_samples

# Offsets of the streams of noise drawn from one seed; the first noise is the seed's own.
SDE_STREAM = 1
# A noise mask keeps its source through every step, then fades over 0.4 s.
MASK_INJECTION = 1.0
MASK_CROSSFADE_FRAMES = 10


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
    resolved = resolve(model.variant, n_steps, shift, guidance_scale)
    is_turbo = PRESETS[model.variant].is_turbo
    levels = (
        custom_schedule(options.timesteps, is_turbo)
        if options.timesteps
        else schedule(resolved.n_steps, resolved.shift)
    )
    n_plans = _n_plans(conditioning)
    every_seed = take_seeds(seed, n_plans * takes_per_plan, seeds)
    takes = [Take(s, i // takes_per_plan, len(levels) - 1) for i, s in enumerate(every_seed)]
    settings = replace(options.settings, heun_last=not is_turbo)
    preserve = _preserve(source, latent_mask(latent_in, n_frames), len(takes))
    warnings = [*resolved.warnings, *_unused_source(source, preserve)]

    size = _chunk_size(patcher, conditioning, n_frames, len(takes), resolved.guidance > 1)
    n_chunks = -(-len(takes) // size)
    update = host.progress(n_chunks * (len(levels) - 1))
    done = []
    for start in range(0, len(takes), size):
        chunk = slice(start, start + size)
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
                seed=takes[start].seed,
                preserve=None if preserve is None else _rows(preserve, chunk),
                fresh_noise=_stream([take.seed for take in takes[chunk]], n_frames),
                on_step=lambda index, first=first_step: update(first + index + 1),
            )
        )
    samples = torch.cat(done)
    if not torch.isfinite(samples).all():
        raise RuntimeError("sampling gave NaN or infinity; load the model with weight_dtype fp32 or bf16")
    return Generation(
        latent(host.to_intermediate(samples), tuple(takes)),
        _summary(resolved, options, levels, every_seed, size),
        tuple(warnings),
    )


def noise(seed: int, n_frames: int, stream: int = 0) -> torch.Tensor:
    """Return a take's noise [T, 64], the same on every machine: drawn on the CPU from its own generator."""
    generator = torch.Generator("cpu").manual_seed(seed + (stream << 54))
    return torch.randn(n_frames, LATENT_CHANNELS, generator=generator)


def _stream(seeds: Sequence[int], n_frames: int) -> Callable[[], torch.Tensor]:
    """Return a source of fresh noise [B, T, 64], each item from its own seed."""
    generators = [torch.Generator("cpu").manual_seed(seed + (SDE_STREAM << 54)) for seed in seeds]
    return lambda: torch.stack([torch.randn(n_frames, LATENT_CHANNELS, generator=g) for g in generators])


def _n_plans(conditioning: list) -> int:
    states, extras = conditioning[0]
    encoding = extras.get(ACESTEP_KEY)
    return encoding.n_plans if encoding is not None else states.shape[0]


def _conds(conditioning: list, plans: Sequence[int]) -> tuple[list, list]:
    """Return the conditioning for a batch of takes, with its text and without."""
    with_rows = [[states, {**extras, ROWS_KEY: tuple(plans)}] for states, extras in conditioning]
    return with_rows, [[torch.zeros_like(states), extras] for states, extras in with_rows]


def _preserve(source: torch.Tensor, inside: torch.Tensor | None, n_takes: int) -> Preserve | None:
    if inside is None:
        return None
    rows = torch.arange(n_takes)
    return Preserve(
        source.float()[rows % len(source)], inside[rows % len(inside)], MASK_INJECTION, MASK_CROSSFADE_FRAMES
    )


def _rows(preserve: Preserve, chunk: slice) -> Preserve:
    return replace(preserve, source=preserve.source[chunk], inside=preserve.inside[chunk])


def _unused_source(source: torch.Tensor, preserve: Preserve | None) -> list[str]:
    if preserve is None and bool(source.any()):
        return ["the latent is not empty, but nothing here uses it: only its length counts"]
    return []


def _chunk_size(patcher, conditioning: list, n_frames: int, n_takes: int, guided: bool) -> int:
    """Return how many takes to sample at once: as many as the device has room for, at least one."""
    encoding = conditioning[0][1].get(ACESTEP_KEY)
    n_tokens = 0 if encoding is None else encoding.text.states.shape[1] + encoding.lyric.states.shape[1] + 1
    branches = 2 if guided else 1
    one = patcher.model.memory_required([branches, LATENT_CHANNELS, n_frames], {ACESTEP_KEY: [[branches, n_tokens]]})
    room = host.room_beside(patcher)
    return max(1, min(n_takes, int(room // one)))


def _summary(
    resolved: Resolved, options: Options, levels: Sequence[float], seeds: Sequence[int], chunk_size: int
) -> str:
    what = f"{len(levels) - 1} custom timesteps" if options.timesteps else resolved.summary
    chunks = f", {chunk_size} takes at a time" if chunk_size < len(seeds) else ""
    return f"{what}, {options.settings.solver}{chunks}, seed {', '.join(map(str, seeds))}"
