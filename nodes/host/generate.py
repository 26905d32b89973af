"""One press of Run on the sampler: settings resolved, noise drawn, takes sampled in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...acestep_core.checkpoints.presets import PRESETS, Resolved, resolve
from ...acestep_core.constants import LATENT_CHANNELS
from ...acestep_core.pipeline.condition import Encoding
from ...acestep_core.pipeline.morph import Morph
from ...acestep_core.pipeline.options import Options, Retake
from ...acestep_core.pipeline.sample import Preserve
from ...acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
from ...acestep_core.pipeline.tasks import Keep, Task
from ...acestep_core.types import Take, take_seeds
from . import memory, progress
from .guider import Morphing, run
from .model import ROWS_KEY, AceStepModel, Part, require_ours
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
    model, song = require_ours(patcher), latent_samples(latent_in)
    task, morph, n_frames = _task(conditioning), options.morph, song.shape[1]
    _check(model, conditioning, options, n_frames)
    resolved = resolve(model.variant, n_steps, shift, guidance_scale)
    levels = _levels(model, task, resolved, options)
    takes = _takes(conditioning, seed, seeds, takes_per_plan, len(levels) - 1)
    rows = torch.tensor([take.plan for take in takes])
    source = song if task is None else task.source_in_window(n_frames, model.silence.cpu())
    preserve = _preserve(source, task, latent_mask(latent_in, n_frames), rows)
    start = _start(song, source, task, morph, rows)
    warnings = [*resolved.warnings, *_warnings(conditioning, options, used=preserve is not None or not song.any())]
    if task is not None and task.keeps_all:
        samples, summary = source[rows % len(source)], "nothing to generate: the source as it is"
    else:
        job = _Job(patcher, conditioning, options, takes, levels, resolved.guidance, n_frames, start, preserve)
        samples, size = job.run()
        summary = _summary(resolved, options, levels, takes, size)
    if task is not None:
        samples = task.assemble(samples, rows)  # the whole canvas, the sources around what is new
    return Generation(latent(memory.to_intermediate(samples), takes), summary, tuple(warnings))


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything that takes are sampled from. start and preserve have a row a take."""

    patcher: Any
    conditioning: list
    options: Options
    takes: tuple[Take, ...]
    levels: tuple[float, ...]
    guidance: float
    n_frames: int
    start: torch.Tensor | None
    preserve: Preserve | None

    def run(self) -> tuple[torch.Tensor, int]:
        """Return latents [N, T, 64] of all takes, and how many were sampled at once."""
        morph, n_steps, n_takes = self.options.morph, len(self.levels) - 1, len(self.takes)
        asked = [self.conditioning] if morph is None else [self.conditioning, morph.origin]
        size = min(_chunk_size(self.patcher, each, self.n_frames, n_takes, self.guidance > 1) for each in asked)
        chunks = [slice(first, first + size) for first in range(0, n_takes, size)]
        update = progress.of_steps(len(chunks) * n_steps)
        done = [
            self._sample(chunk, lambda index, before=number * n_steps: update(before + index + 1))
            for number, chunk in enumerate(chunks)
        ]
        samples = torch.cat(done)
        if not torch.isfinite(samples).all():
            raise RuntimeError("sampling gave NaN or infinity; load the model with weight_dtype fp32 or bf16")
        return samples, size

    def _sample(self, chunk: slice, on_step: Callable[[int], None]) -> torch.Tensor:
        takes, options, morph = self.takes[chunk], self.options, self.options.morph
        seeds = [take.seed for take in takes], take_seeds(options.retake.seed, len(self.takes))[chunk]
        plans = [take.plan for take in takes]
        positive, negative = _conds(self.conditioning, plans)
        draw = _noise(*seeds, options.retake, self.n_frames)
        return run(
            self.patcher,
            positive,
            negative,
            draw(),
            self.levels,
            options.guidance(self.guidance),
            replace(options.settings, heun_last=not PRESETS[self.patcher.model.variant].is_turbo),
            seed=takes[0].seed,
            start=None if self.start is None else self.start[chunk],
            preserve=None if self.preserve is None else _rows(self.preserve, chunk),
            # A morph begins from a song, and so draws the first noise too.
            fresh_noise=draw if morph is None else _noise(*seeds, options.retake, self.n_frames),
            morphing=None if morph is None else Morphing(morph, *_conds(morph.origin, plans)),
            on_step=on_step,
        )


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


def _check(model: AceStepModel, conditioning: list, options: Options, n_frames: int) -> None:
    """Raise ValueError for a task that the checkpoint was not trained on, or for prompts of another length."""
    task = _task(conditioning)
    if task is not None and task.rule.needs_base and model.variant != "base":
        raise ValueError(
            f"{task.name} needs a base model, this is {model.variant}; load acestep_v1.5_base, "
            'or set "variant" to base (xl-base) if this is one'
        )
    if task is not None and n_frames != task.window_frames:
        raise ValueError(
            f"the latent has {n_frames} frames, the {task.name} generates {task.window_frames}; "
            'connect the latent of "ACE-Step Encode Song"'
        )
    if options.morph is not None:
        _check_morph(conditioning, options.morph.origin, n_frames)


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


def _warnings(conditioning: list, options: Options, used: bool) -> list[str]:
    """Return what a user may not have meant: a latent for nothing, or a morph between more than words."""
    if options.morph is None:
        idle = not used and _task(conditioning) is None
        return ["the latent is not empty, but nothing here uses it: only its length counts"] if idle else []
    encodings = [each[0][1].get(ACESTEP_KEY) for each in (conditioning, options.morph.origin)]
    heard = [(each.codes, each.task is None, each.timbre is None) for each in encodings if each is not None]
    if len(heard) < 2 or heard[0] == heard[1]:
        return []
    return ['"morph_from" has other codes, task or reference than the conditioning: more than the words will change']


def _levels(model: AceStepModel, task: Task | None, resolved: Resolved, options: Options) -> tuple[float, ...]:
    """Return the noise levels of a run: the user's own or the schedule's, begun where a cover says."""
    if options.timesteps:
        levels = custom_schedule(options.timesteps, PRESETS[model.variant].is_turbo)
    else:
        levels = schedule(resolved.n_steps, resolved.shift)
    return start_at(levels, 1 - task.noise_strength) if task is not None and task.noise_strength else levels


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


def _chunk_size(patcher, conditioning: list, n_frames: int, n_takes: int, guided: bool) -> int:
    """Return how many takes to sample at once: as many as the device has room for, at least one."""
    n_branches = 2 if guided else 1
    conds = {ACESTEP_KEY: [[n_branches, _n_tokens(conditioning)]]}
    one = patcher.model.memory_required([n_branches, LATENT_CHANNELS, n_frames], conds)
    return max(1, min(n_takes, int(memory.room_beside(patcher) // one)))


def _n_tokens(conditioning: list) -> int:
    """Return how long the packed condition is, 0 for one of core's own."""
    encoding: Encoding | None = conditioning[0][1].get(ACESTEP_KEY)
    return 0 if encoding is None else Part(encoding, ()).n_tokens


def _summary(
    resolved: Resolved, options: Options, levels: Sequence[float], takes: Sequence[Take], chunk_size: int
) -> str:
    what = f"{len(levels) - 1} custom timesteps" if options.timesteps else resolved.summary
    chunks = f", {chunk_size} takes at a time" if chunk_size < len(takes) else ""
    return (
        f"{what}, {options.summary(resolved.guidance > 1)}{chunks}, seed {', '.join(str(take.seed) for take in takes)}"
    )
