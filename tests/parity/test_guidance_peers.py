"""Schedules, solver steps and guidance against diffusers' and against the formulas written out."""

import math

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor

from acestep_pack.acestep_core.pipeline.guidance import Guidance, Guide
from acestep_pack.acestep_core.pipeline.options import Options
from acestep_pack.acestep_core.pipeline.sample import Evaluation, SamplerSettings, sample
from acestep_pack.acestep_core.pipeline.schedule import TURBO_LEVELS, custom_schedule, schedule
from golden_models import assert_close, z
from parity.peers import ONE_PART

pytestmark = pytest.mark.parity

SHAPE = (2, 37, 64)
# Eight steps at shift 1, 2 and 3, as the official turbo code lists them.
TURBO_TABLE = {
    1.0: (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125),
    2.0: (
        1.0,
        0.9333333333333333,
        0.8571428571428571,
        0.7692307692307693,
        0.6666666666666666,
        0.5454545454545454,
        0.4,
        0.2222222222222222,
    ),
    3.0: (1.0, 0.9545454545454546, 0.9, 0.8333333333333334, 0.75, 0.6428571428571429, 0.5, 0.3),
}


def drifting(step: int) -> tuple[Tensor, Tensor]:
    """Return two predictions that differ more in some channels than in others, so that norms get limited."""
    cond = z(f"peer.cond{step}", *SHAPE)
    return cond, cond + torch.linspace(0.01, 2, SHAPE[-1]) * z(f"peer.difference{step}", *SHAPE)


# Schedules.


@pytest.mark.parametrize("shift", TURBO_TABLE)
def test_schedule_of_eight_steps_is_the_official_table(shift):
    assert schedule(8, shift) == pytest.approx((*TURBO_TABLE[shift], 0.0), abs=1e-15)


def test_turbo_levels_are_the_values_of_the_three_official_tables():
    # 1.0, 0.75 and 0.5 stand in more than one.
    assert len(TURBO_LEVELS) == 20
    assert pytest.approx(sorted(set().union(*TURBO_TABLE.values()), reverse=True), abs=1e-15) == TURBO_LEVELS


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 4.7])
@pytest.mark.parametrize("n_steps", [1, 8, 50])
def test_schedule_equals_diffusers(n_steps, shift):
    theirs = AceStepPipeline._get_timestep_schedule(None, n_steps, shift, dtype=torch.float64)
    assert schedule(n_steps, shift) == pytest.approx((*theirs.tolist(), 0.0), abs=1e-12)


# Steps.


@pytest.mark.parametrize("levels", [schedule(8, 3.0), custom_schedule((0.97, 0.6, 0.55, 0.1))])
def test_euler_steps_equal_diffusers(levels):
    noise, pull = z("peer.noise", *SHAPE), z("peer.pull", *SHAPE)
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    theirs.set_timesteps(sigmas=list(levels[:-1]))
    x, path = noise, []
    for t in theirs.timesteps:
        x = theirs.step(pull.sin() * x + t * pull, t, x).prev_sample
        path.append(x)
    ours = sample(lambda x, at: pull.sin() * x + at.t * pull, noise, levels, SamplerSettings())
    assert len(path) == len(levels) - 1
    assert_close(ours, x, ONE_PART)


# Guidance.


@pytest.mark.parametrize("scale", [1.5, 4.0, 7.0])
def test_apg_with_momentum_over_several_steps_equals_diffusers(scale):
    guide, momentum = Guide(Guidance("apg", scale)), MomentumBuffer(-0.75)
    for step, t in enumerate((1.0, 0.8, 0.6, 0.4, 0.2)):
        cond, uncond = drifting(step)
        theirs = normalized_guidance(
            cond,
            uncond,
            scale - 1,
            momentum,
            eta=0.0,
            norm_threshold=2.5,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        assert_close(guide(cond, uncond, z("peer.x", *SHAPE), Evaluation(t, step)), theirs, ONE_PART)


def test_apg_is_the_default_of_guidance_and_options():
    """ComfyUI and DiffSynth guide plainly."""
    assert Guidance().method == Options().guidance_method == "apg"


def test_apg_corrector_guides_plainly_and_leaves_the_momentum_alone():
    once, twice, x = Guide(Guidance("apg", 7.0)), Guide(Guidance("apg", 7.0)), z("peer.x", *SHAPE)
    for step, t in enumerate((0.9, 0.5, 0.1)):
        cond, uncond = drifting(step)
        assert torch.equal(once(cond, uncond, x, Evaluation(t, 0)), twice(cond, uncond, x, Evaluation(t, 0)))
        plain = twice(cond, uncond, x, Evaluation(t, step, corrector=True))
        assert_close(plain, 7 * cond - 6 * uncond, ONE_PART)


def test_cfg_is_the_plain_formula():
    cond, uncond = drifting(0)
    ours = Guide(Guidance("cfg", 4.5))(cond, uncond, z("peer.x", *SHAPE), Evaluation(0.5, 0))
    assert_close(ours, 4.5 * cond - 3.5 * uncond, ONE_PART)


@pytest.mark.parametrize("t", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("scale", [1.5, 5.0])
def test_adg_turns_each_frame_by_a_limited_multiple_of_its_angle(scale, t):
    cond, uncond = drifting(0)
    x = z("peer.x", *SHAPE)

    def turned(x: np.ndarray, cond: np.ndarray, uncond: np.ndarray) -> np.ndarray:
        data, plain = x - t * cond, x - t * uncond
        angle = math.acos(data @ plain / np.linalg.norm(data) / np.linalg.norm(plain))
        further = min((scale - 1 + 1e-3) * angle, 3.14 / 6)
        away = data - data @ plain / (plain @ plain) * plain
        guided = math.cos(further) * data + math.sin(further) / math.sin(angle) * away
        return (x - guided) / t

    frames = (part.flatten(0, 1).double().numpy() for part in (x, cond, uncond))
    theirs = torch.from_numpy(np.stack([turned(*frame) for frame in zip(*frames, strict=True)]))
    assert_close(Guide(Guidance("adg", scale))(cond, uncond, x, Evaluation(t, 0)), theirs.view(SHAPE).float(), ONE_PART)


def test_guidance_interval_is_in_noise_level_not_in_progress():
    """diffusers compares 1 − t."""
    late = Guidance("apg", 7.0, interval=(0.0, 0.3))
    assert [late.applies_at(t) for t in (1.0, 0.7, 0.31, 0.3, 0.1)] == [False, False, False, True, True]
    assert not Guidance("apg", 1.0).applies_at(0.5)
