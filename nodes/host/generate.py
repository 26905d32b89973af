"""One press of Run on the sampler: what the core settled, sampled through ComfyUI in chunks that fit memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import comfy.model_sampling
import torch

from ...acestep_core.constants import LATENT_CHANNELS
from ...acestep_core.pipeline.schedule import MAX_SHIFT
from ...acestep_core.pipeline.takes import Request, Takes, check_morph, prepare
from ...acestep_core.pipeline.tasks import Task
from ...acestep_core.types import in_turn
from . import memory, progress
from .conditioning import Prompt
from .guider import run
from .latents import ACESTEP_KEY, latent, latent_mask, latent_samples
from .model import require_ours
from .network import unread_warnings
from .sampling import check_flow, windows_over_time


@dataclass(frozen=True, eq=False)
class Generation:
    """The takes as a LATENT, and what to tell about them."""

    latent: dict
    summary: str
    warnings: tuple[str, ...]


def generate(
    patcher, conditioning: list, latent_in: dict, request: Request, morph_conditioning: list | None = None
) -> Generation:
    """Return the takes of every plan of a conditioning. morph_conditioning: of the prompt that a morph comes from.

    Raises ValueError for a foreign MODEL, a broken latent, or settings out of range, before anything is sampled.
    """
    model, song = require_ours(patcher), latent_samples(latent_in)
    n_frames = song.shape[1]
    prompt = Prompt.of(conditioning, n_frames)
    morph_from = None if morph_conditioning is None else Prompt.of(morph_conditioning, n_frames)
    if morph_from is not None:
        check_morph(prompt.task, morph_from.task, prompt.n_plans, morph_from.n_plans, n_frames)
    noise_mask = None if prompt.task.sources else latent_mask(latent_in, n_frames)
    uses_items = noise_mask is not None or not song.any()
    request, told = _with_surroundings(patcher, request, len(song) if uses_items else 1, prompt.n_plans)
    takes = prepare(request, model.variant, prompt.task, prompt.n_plans, song, model.silence, noise_mask)
    used = takes.preserve is not None or takes.start is not None or not song.any()
    warnings = [*takes.resolved.warnings, *told, *_warnings(prompt, morph_from, used)]
    warnings += _unheeded(patcher, latent_in, prompt.task)
    if takes.keeps_all:
        source = prompt.task.source_in_window(n_frames, model.silence.cpu())
        samples = in_turn(source, takes.rows) if takes.preserve is None else takes.preserve.source
        summary = "nothing to generate: the source as it is"
    else:
        samples, summary, unread = _sample(patcher, prompt, morph_from, takes)
        warnings += unread
    samples = prompt.task.assemble(samples, takes.rows)  # the whole canvas, the sources around what is new
    made = latent(memory.to_intermediate(samples), takes.takes, prompt.origins)
    return Generation(made, summary, tuple(warnings))


def _with_surroundings(patcher, request: Request, n_items: int, n_plans: int) -> tuple[Request, list[str]]:
    """Return a request with what other nodes have put on the MODEL and the latent, and what of that is not followed.

    n_items: of the latent, where they are empty or what is sampled into.

    Raises ValueError for a node on the MODEL that sets other noise than a flow's, or a shift out of range.
    """
    told = []
    check_flow(patcher)
    shift = _shift_on(patcher)
    if shift is not None and not request.shift:
        request = replace(request, shift=shift)
    elif shift is not None and request.shift != shift:
        told.append(f'a node on the MODEL sets shift {shift:g}; "shift" is {request.shift:g}, and that is used')
    if n_items > n_plans and request.takes_per_plan == 1 and not n_items % n_plans:
        request = replace(request, takes_per_plan=n_items // n_plans)
    elif n_items not in (1, n_plans, n_plans * request.takes_per_plan):
        told.append(
            f"the latent holds {n_items} items, but {n_plans * request.takes_per_plan} takes are made: "
            '"takes_per_plan" says how many'
        )
    if request.options.guidance_method != "cfg" and "sampler_cfg_function" in patcher.model_options:
        told.append(f'a node on the MODEL guides in place of "{request.options.guidance_method}"')
    return request, told


def _unheeded(patcher, latent_in: dict, task: Task) -> list[str]:
    """Return what other nodes have put on the MODEL and the latent without effect."""
    told, masked, n_items = [], "noise_mask" in latent_in, len(latent_in["samples"])
    if masked and task.sources:
        told.append(f"the latent's noise mask has no effect: the {task.name} says what is generated")
    elif masked and "denoise_mask_function" in patcher.model_options:
        told.append("DifferentialDiffusion has no effect here: this sampler blends by the mask itself")
    if getattr(patcher.get_model_object("model_sampling"), "noise_scale", 1.0) != 1:
        told.append("ModelNoiseScale has no effect here: this sampler draws its own noise")
    order = list(latent_in.get("batch_index") or range(n_items))
    if order != list(range(n_items)) and not latent_in["samples"].any():
        told.append("which noise each empty item should get (batch_index) has no effect: seeds tell that")
    return told


def _shift_on(patcher) -> float | None:
    """Return the shift that a ModelSampling node has put on a MODEL, None without one.

    Raises ValueError for one that our schedules do not reach.
    """
    sampling = patcher.object_patches.get("model_sampling")
    # ModelNoiseScale makes the model's own again, with the model's own shift.
    if sampling is None or type(sampling) is patcher.model.own_sampling:
        return None
    if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        shift = float(sampling.shift)
    else:  # any other that shifts a flow: at half of the steps the level is shift / (shift + 1)
        half = float(sampling.percent_to_sigma(0.5))
        shift = half / (1 - half)
    if not 0 < shift <= MAX_SHIFT:
        raise ValueError(
            f"a node on the MODEL sets shift {shift:g}, it must be above 0 and at most {MAX_SHIFT:g}; change it, or "
            "remove the node"
        )
    return shift


def _sample(patcher, prompt: Prompt, morph_from: Prompt | None, takes: Takes) -> tuple[torch.Tensor, str, list[str]]:
    """Return latents [N, T, 64] of all takes, a summary, and what was on the MODEL without effect."""
    n_steps, n_takes = len(takes.levels) - 1, len(takes.takes)
    prompts = [prompt] if morph_from is None else [prompt, morph_from]
    one_by_one = windows_over_time(patcher.model_options, takes.n_frames)
    size = 1 if one_by_one else min(_chunk_size(patcher, each, takes) for each in prompts)
    chunks = [slice(first, first + size) for first in range(0, n_takes, size)]
    update = progress.of_steps(len(chunks) * n_steps)
    parts, unread = [], {}
    for number, chunk in enumerate(chunks):
        part, sampling = run(
            patcher,
            prompt,
            takes.job(chunk),
            seed=takes.seeds[chunk][0],
            shift=takes.resolved.shift,
            morph_from=morph_from,
            on_step=lambda index, before=number * n_steps: update(before + index + 1),
        )
        parts.append(part)
        unread.update(dict.fromkeys(unread_warnings(sampling)))
    samples = torch.cat(parts)
    if not torch.isfinite(samples).all():
        raise RuntimeError("sampling gave NaN or infinity; load the model with weight_dtype fp32 or bf16")
    return samples, _summary(takes, size), list(unread)


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
    encodings = (prompt.encoding, morph_from.encoding)
    differences = {(each.codes, bool(each.task.sources), each.timbre is None) for each in encodings}
    if len(differences) < 2:
        return []
    return ['"morph_from" has other codes, task or reference than the conditioning: more than the words will change']


def _summary(takes: Takes, chunk_size: int) -> str:
    at_once = "1 take" if chunk_size == 1 else f"{chunk_size} takes"
    chunks = f", {at_once} at a time" if chunk_size < len(takes.takes) else ""
    return f"{takes.summary}{chunks}, seed {', '.join(map(str, takes.seeds))}"
