"""One press of Run on the sampler: settings resolved, noise drawn, takes sampled in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..acestep_core.constants import LATENT_CHANNELS
from ..acestep_core.pipeline.condition import Encoding
from ..acestep_core.pipeline.morph import Morph
from ..acestep_core.pipeline.options import Options, Retake
from ..acestep_core.pipeline.sample import Preserve
from ..acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
from ..acestep_core.pipeline.tasks import Keep, Task
from ..acestep_core.presets import PRESETS, Resolved, resolve
from ..acestep_core.types import Take, take_seeds
from . import host
from .guider import Morphing, run
from .model import ROWS_KEY, AceStepModel, require_ours
from .sockets import ACESTEP_KEY, latent, latent_mask, latent_samples

MORPH_TASKS = ("cover", "cover-nofsq")
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
    source = song = latent_samples(latent_in)
    n_frames = source.shape[1]
    encoding, task = conditioning[0][1].get(ACESTEP_KEY), _task(conditioning)
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
    retake_seeds = take_seeds(options.retake.seed, len(takes))
    rows = torch.tensor([take.plan for take in takes])
    settings = replace(options.settings, heun_last=not is_turbo)
    warnings = list(resolved.warnings)
    if task is not None:
        source = task.source_in_window(n_frames, model.silence.cpu())
    preserve = _preserve(source, task, latent_mask(latent_in, n_frames), rows)
    morph = options.morph
    if morph is not None:
        _check_morph(conditioning, morph.origin, n_frames)
        warnings.extend(_morph_warnings(encoding, morph.origin))
    elif task is None and preserve is None and bool(source.any()):
        warnings.append("the latent is not empty, but nothing here uses it: only its length counts")
    start = _start(song, source, task, morph, rows)
    if task is not None and task.keeps_all:
        samples = source[rows % len(source)]
        return _generation(samples, takes, task, "nothing to generate: the source as it is", warnings)

    asked = [encoding] if morph is None else [encoding, morph.origin[0][1].get(ACESTEP_KEY)]
    size = min(_chunk_size(patcher, each, n_frames, len(takes), resolved.guidance > 1) for each in asked)
    n_chunks = -(-len(takes) // size)
    update = host.progress(n_chunks * (len(levels) - 1))
    done = []
    for first in range(0, len(takes), size):
        chunk = slice(first, first + size)
        first_step = len(done) * (len(levels) - 1)
        seeds_of = [take.seed for take in takes[chunk]], retake_seeds[chunk]
        draw = _noise(*seeds_of, options.retake, n_frames)
        first_noise = draw()
        plans = [take.plan for take in takes[chunk]]
        positive, negative = _conds(conditioning, plans)
        done.append(
            run(
                patcher,
                positive,
                negative,
                first_noise,
                levels,
                options.guidance(resolved.guidance),
                settings,
                seed=takes[first].seed,
                start=None if start is None else start[chunk],
                preserve=None if preserve is None else _rows(preserve, chunk),
                # A morph begins from a song, and so draws this noise too.
                fresh_noise=draw if morph is None else _noise(*seeds_of, options.retake, n_frames),
                morphing=None if morph is None else Morphing(morph, *_conds(morph.origin, plans)),
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


def _noise(seeds: Sequence[int], others: Sequence[int], retake: Retake, n_frames: int) -> Callable[[], torch.Tensor]:
    """Return a source of noise [B, T, 64], each item from its own seed, turned towards that of its other seed."""
    draw, other = (_stream(each, n_frames) for each in (seeds, others))
    return (lambda: retake.turn(draw(), other())) if retake.variance else draw


def _stream(seeds: Sequence[int], n_frames: int) -> Callable[[], torch.Tensor]:
    """Return a source of noise [B, T, 64], the same on every machine: each item on the CPU from its own generator.

    The start of a run is the first draw, and `sde` goes on from there: PyTorch's CPU generator reads 32 bits of a
    seed, so an offset beyond those makes no second stream.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
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
            'connect the latent of "ACE-Step Encode Song"'
        )


def _check_morph(conditioning: list, origin: list, n_frames: int) -> None:
    """Raise ValueError for prompts that no morph leads between."""
    for task in filter(None, (_task(conditioning), _task(origin))):
        if task.name not in MORPH_TASKS:
            raise ValueError(
                f'a morph goes with a cover or with no task, not with {task.name}; disconnect it or "morph_from"'
            )
        if task.noise_strength:
            raise ValueError('a morph begins from the song itself; set "noise_strength" of the cover to 0')
        if task.window_frames != n_frames:
            raise ValueError(
                f"the latent has {n_frames} frames, the {task.name} of the morph {task.window_frames}; "
                "use a cover of the same song for both prompts"
            )
    ours, theirs = _n_plans(conditioning), _n_plans(origin)
    if theirs not in (1, ours):
        raise ValueError(f'"morph_from" has {theirs} plans, the conditioning {ours}; give it one, or as many')


def _morph_warnings(encoding: Encoding | None, origin: list) -> list[str]:
    """Return what makes a morph change more than the words: conditions that hear different things."""
    other = origin[0][1].get(ACESTEP_KEY)
    if encoding is None or other is None:
        return []
    ours, theirs = ((each.codes, each.task is None, each.timbre is None) for each in (encoding, other))
    if ours == theirs:
        return []
    return ['"morph_from" has other codes, task or reference than the conditioning: more than the words will change']


def _start(
    song: torch.Tensor, source: torch.Tensor, task: Task | None, morph: Morph | None, rows: torch.Tensor
) -> torch.Tensor | None:
    """Return the clean latents that takes of these rows begin from, None where they begin from noise.

    song: what the sampler was given, source: what a task works on. A cover's source stands in for an empty song.
    """
    if morph is None:
        return source[rows % len(source)] if task is not None and task.noise_strength else None
    if not song.any():
        if task is None:
            raise ValueError(
                "a morph needs the song it begins from, this latent is empty; "
                'connect what "ACE-Step Encode Audio" or the sampler made'
            )
        song = source
    n_plans = int(rows.max()) + 1
    if len(song) not in (1, n_plans):
        raise ValueError(
            f"a morph takes one song or one for each plan, here {n_plans}, the latent holds {len(song)}; "
            "pick from it or make as many plans"
        )
    return song[rows % len(song)].float()


def _takes(conditioning: list, seed: int, seeds: Sequence[int], takes_per_plan: int, n_steps: int) -> tuple[Take, ...]:
    """Return what to make, plan by plan."""
    task = _task(conditioning)
    plans = [plan for plan in range(_n_plans(conditioning)) for _ in range(takes_per_plan)]
    every_seed = take_seeds(seed, len(plans), seeds)
    return tuple(
        Take(each, plan, n_steps, "" if task is None else task.track_of(plan))
        for each, plan in zip(every_seed, plans, strict=True)
    )


def _task(conditioning: list) -> Task | None:
    encoding: Encoding | None = conditioning[0][1].get(ACESTEP_KEY)
    return None if encoding is None else encoding.task


def _n_plans(conditioning: list) -> int:
    states, extras = conditioning[0]
    encoding: Encoding | None = extras.get(ACESTEP_KEY)
    return states.shape[0] if encoding is None else encoding.n_plans


def _conds(conditioning: list, plans: Sequence[int]) -> tuple[list, list]:
    """Return the conditioning for a batch of takes, with its text and without; its own plans are taken in turn."""
    rows = tuple(plan % _n_plans(conditioning) for plan in plans)
    with_rows = [[states, {**extras, ROWS_KEY: rows}] for states, extras in conditioning]
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
    return (
        f"{what}, {options.summary(resolved.guidance > 1)}{chunks}, seed {', '.join(str(take.seed) for take in takes)}"
    )
