"""A sampling of our MODEL by anyone's sampler: what is checked before it, and remembered after it."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management as mm
import comfy.model_sampling
import torch

from ...acestep_core.types import Take, in_turn, plan_of
from . import progress
from .conditioning import ROWS_KEY
from .latents import ACESTEP_KEY, fitted_mask
from .network import LEVEL_ERROR, SAMPLING_KEY, Sampling, unread_warnings


def with_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """Wrap core's outer sample: give it a Sampling, take it away however it ends, and remember what core sampled.

    Raises ValueError for a MODEL or SIGMAS whose noise is not a flow's.
    """
    guider = executor.class_obj
    check_flow(guider.model_patcher)
    _check_levels(sigmas)
    if len(noise) > 1 and windows_over_time(guider.model_options, noise.shape[-1]):
        raise ValueError(
            'core\'s context windows take one item of a batch at a time; make one take, or use "ACE-Step Sampler", '
            "which makes several one by one"
        )
    for conds in guider.conds.values():
        for cond in conds:
            _fit_mask(cond, noise)
    options = guider.model_options.setdefault("transformer_options", {})
    sampling = options[SAMPLING_KEY] = Sampling()
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        del options[SAMPLING_KEY]
    _remember(guider.conds.get("positive") or (), samples)
    if sampling.at is None and sampling.unread:  # our own sampler tells it itself
        progress.warn("\n".join(unread_warnings(sampling)))
    return samples


def windows_over_time(model_options: dict, n_frames: int) -> bool:
    """Tell whether core would cut latents of n_frames into context windows."""
    handler = model_options.get("context_handler")
    return handler is not None and handler.dim != 0 and n_frames > handler.context_length


def check_flow(patcher) -> None:
    """Raise ValueError for a MODEL with a ModelSampling node that turns its velocities into something else."""
    sampling = patcher.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            "a node has set this MODEL to another kind of noise than ACE-Step was trained on; remove it "
            "(ModelSamplingDiscrete, ModelSamplingContinuousEDM, ModelSamplingContinuousV, ModelSamplingStableCascade)"
        )


def _check_levels(sigmas: torch.Tensor) -> None:
    """Raise ValueError for SIGMAS outside 1 to 0, or that end at 1, where core divides by 1 - sigma."""
    if len(sigmas) and float(sigmas.max()) > 1 + LEVEL_ERROR:
        raise ValueError(
            f"the SIGMAS begin at {float(sigmas.max()):.3g}, they are of another kind of model; noise levels of "
            "ACE-Step go from 1 to 0: make them with BasicScheduler"
        )
    if len(sigmas) and float(sigmas[-1]) > 1 - LEVEL_ERROR:
        raise ValueError(
            "the SIGMAS end at 1, which is nothing but noise; let them fall towards 0 (without FlipSigmas, and with a "
            "SplitSigmas step above 0)"
        )


def _fit_mask(cond: dict, noise: torch.Tensor) -> None:
    """Bring the mask of a condition to [B, T], as core expects it of latents [B, 64, T] but does not make it.

    Raises ValueError for a picture.
    """
    if "mask" not in cond:
        return
    mask = fitted_mask(cond["mask"], noise.shape[-1])
    if len(mask) > 1:
        mask = in_turn(mask, torch.arange(len(noise)))
    cond["mask"] = mask
    if cond.pop("set_area_to_bounds", False):
        inside = (mask != 0).any(0).nonzero().flatten().tolist() or [0]
        cond["area"] = (inside[-1] + 1 - inside[0], inside[0])


def _remember(positive: Sequence[dict], samples: torch.Tensor) -> None:
    """Remember which plan core's samplers followed in each item of samples [B, 64, T]; our own say more themselves."""
    beside = next((cond[ACESTEP_KEY] for cond in positive if ACESTEP_KEY in cond), None)
    if beside is None or any(ROWS_KEY in cond for cond in positive):
        return
    conds = [cond["model_conds"].get(ACESTEP_KEY) for cond in positive if "model_conds" in cond]
    n_plans = max((cond.branch.encoding.n_plans for cond in conds if cond is not None), default=0)
    if n_plans:
        takes = [Take(plan=plan_of(item, None, n_plans)) for item in range(len(samples))]
        beside.origins.add(samples.to(mm.intermediate_dtype()), takes)
