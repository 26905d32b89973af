"""One press of Run on the sampler: what the core settled, sampled through ComfyUI in chunks that fit memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...acestep_core.constants import LATENT_CHANNELS
from ...acestep_core.pipeline.takes import Request, Takes, check_morph, prepare
from ...acestep_core.types import in_turn
from . import memory, progress
from .guider import run
from .model import require_ours
from .sockets import ACESTEP_KEY, Prompt, latent, latent_mask, latent_samples


@dataclass(frozen=True, eq=False)
class Generation:
    """The takes as a LATENT, and what to tell about them."""

    latent: dict
    summary: str
    warnings: tuple[str, ...]


def generate(
    patcher, conditioning: list, latent_in: dict, request: Request, morph_from: Prompt | None = None
) -> Generation:
    """Return the takes of every plan of a conditioning.

    Raises ValueError for a foreign MODEL, a broken latent, or settings out of range, before anything is sampled.
    """
    model, prompt, song = require_ours(patcher), Prompt.of(conditioning), latent_samples(latent_in)
    n_frames = song.shape[1]
    if morph_from is not None:
        check_morph(prompt.task, morph_from.task, prompt.n_plans, morph_from.n_plans, n_frames)
    noise_mask = latent_mask(latent_in, n_frames)
    takes = prepare(request, model.variant, prompt.task, prompt.n_plans, song, model.silence, noise_mask)
    used = takes.preserve is not None or takes.start is not None or not song.any()
    warnings = (*takes.resolved.warnings, *_warnings(prompt, morph_from, used))
    if prompt.task.keeps_all:
        source = prompt.task.source_in_window(n_frames, model.silence.cpu())
        samples, summary = in_turn(source, takes.rows), "nothing to generate: the source as it is"
    else:
        samples, chunk_size = _sample(patcher, prompt, morph_from, takes)
        summary = _summary(takes, chunk_size)
    samples = prompt.task.assemble(samples, takes.rows)  # the whole canvas, the sources around what is new
    return Generation(latent(memory.to_intermediate(samples), takes.takes), summary, warnings)


def _sample(patcher, prompt: Prompt, morph_from: Prompt | None, takes: Takes) -> tuple[torch.Tensor, int]:
    """Return latents [N, T, 64] of all takes, and how many were sampled at once."""
    n_steps, n_takes = len(takes.levels) - 1, len(takes.takes)
    prompts = [prompt] if morph_from is None else [prompt, morph_from]
    size = min(_chunk_size(patcher, each, takes) for each in prompts)
    chunks = [slice(first, first + size) for first in range(0, n_takes, size)]
    update = progress.of_steps(len(chunks) * n_steps)
    samples = torch.cat(
        [
            run(
                patcher,
                prompt,
                takes.job(chunk),
                seed=takes.takes[chunk][0].seed,
                morph_from=morph_from,
                on_step=lambda index, before=number * n_steps: update(before + index + 1),
            )
            for number, chunk in enumerate(chunks)
        ]
    )
    if not torch.isfinite(samples).all():
        raise RuntimeError("sampling gave NaN or infinity; load the model with weight_dtype fp32 or bf16")
    return samples, size


def _chunk_size(patcher, prompt: Prompt, takes: Takes) -> int:
    """Return how many takes to sample at once: as many as the device has room for, at least one."""
    n_branches = 2 if takes.resolved.guidance > 1 else 1
    conds = {ACESTEP_KEY: [[n_branches, prompt.n_tokens]]}
    one = patcher.model.memory_required([n_branches, LATENT_CHANNELS, takes.n_frames], conds)
    return max(1, min(len(takes.takes), int(memory.room_beside(patcher) // one)))


def _warnings(prompt: Prompt, morph_from: Prompt | None, used: bool) -> list[str]:
    """Return what a user may not have meant: a latent for nothing, or a morph between more than words."""
    if morph_from is None:
        idle = not used and not prompt.task.sources
        return ["the latent is not empty, but nothing here uses it: only its length counts"] if idle else []
    encodings = [each.encoding for each in (prompt, morph_from) if each.encoding is not None]
    differences = {(each.codes, bool(each.task.sources), each.timbre is None) for each in encodings}
    if len(differences) < 2:
        return []
    return ['"morph_from" has other codes, task or reference than the conditioning: more than the words will change']


def _summary(takes: Takes, chunk_size: int) -> str:
    chunks = f", {chunk_size} takes at a time" if chunk_size < len(takes.takes) else ""
    return f"{takes.summary}{chunks}, seed {', '.join(map(str, takes.seeds))}"
