"""Whole generations against the official code: same weights, same noise, every option it has."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.acestep import AceStep
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.generate import Job, generate
from acestep_pack.acestep_core.pipeline.guidance import Guidance
from acestep_pack.acestep_core.pipeline.preserve import Keep, Preserve
from acestep_pack.acestep_core.pipeline.sample import SamplerSettings
from acestep_pack.acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
from acestep_pack.acestep_core.pipeline.tasks import TEXT2MUSIC, Source, Task, cover, extract, repaint
from acestep_pack.acestep_core.pipeline.wavelet import Dcw
from golden_models import WHOLE_GENERATION, assert_close, golden, model, z

pytestmark = pytest.mark.parity

BATCH, FRAMES, CHANNELS = 2, 61, 64
REGION = slice(20, 40)


@dataclass(frozen=True)
class Case:
    """One row of the README's tables."""

    levels: tuple[float, ...]
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    guidance: Guidance = field(default_factory=Guidance)
    task: Callable[[Source, Tensor], Task] = lambda source, mask: TEXT2MUSIC
    cover_noise: float = 0.0
    injected: bool = False


def covered(source: Source, mask: Tensor) -> Task:
    return cover(source)


def half_covered(source: Source, mask: Tensor) -> Task:
    return cover(source, strength=0.5)


def repainted(source: Source, mask: Tensor) -> Task:
    return repaint(source, mask, keep=None)


def extracted(source: Source, mask: Tensor) -> Task:
    return extract(source, ("vocals",))


SHIFT_3 = schedule(8, 3.0)
TURBO = {
    "t2m_shift3": Case(SHIFT_3),
    "t2m_shift1_steps5": Case(schedule(5, 1.0)),
    "heun": Case(SHIFT_3, SamplerSettings(solver="heun")),
    "timesteps": Case(custom_schedule((0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085, 0), turbo=True)),
    "cover": Case(SHIFT_3, task=covered),
    "cover_strength_half": Case(SHIFT_3, task=half_covered),
    "cover_noise_0.4": Case(start_at(SHIFT_3, 1 - 0.4), task=covered, cover_noise=0.4),
    "repaint_explicit": Case(SHIFT_3, task=repainted),
    "repaint_injected": Case(SHIFT_3, task=repainted, injected=True),
    "norm_clamp_ema": Case(SHIFT_3, SamplerSettings(norm_limit=2.0, ema=0.1)),
    "extract_source": Case(SHIFT_3, task=extracted),
    "dcw_double": Case(SHIFT_3, SamplerSettings(dcw=Dcw("double", 0.05, 0.02))),
}
TEN = schedule(10, 1.0)
BASE = {
    "apg": Case(TEN, guidance=Guidance("apg", 7)),
    "apg_shift3_interval": Case(schedule(10, 3.0), guidance=Guidance("apg", 5, (0.2, 0.8))),
    "adg": Case(TEN, guidance=Guidance("adg", 5)),
    "no_guidance": Case(TEN),
    "cover_strength_half_apg": Case(TEN, guidance=Guidance("apg", 7), task=half_covered),
    "heun_apg": Case(TEN, SamplerSettings(solver="heun", heun_last=True), Guidance("apg", 7)),
}
CASES = [
    pytest.param(f"{size}_{variant}", name, id=f"{size}_{variant}-{name}")
    for size in ("2b", "xl")
    for variant, cases in (("turbo", TURBO), ("base", BASE))
    for name in cases
]


@pytest.mark.parametrize(("which", "name"), CASES)
def test_generation_equals_official(which, name):
    case = {**TURBO, **BASE}[name]
    with torch.inference_mode():
        ours = latents_of(model(which.split("_")[0]), name, case)
    assert_close(ours, golden()[f"gen.{which}.{name}"], WHOLE_GENERATION)


def latents_of(net: AceStep, name: str, case: Case) -> Tensor:
    """Return our latents of a case, from the stored inputs' formulas."""
    silence, source = z("gen.silence", 1, 800, CHANNELS), Source(z("gen.source", BATCH, FRAMES, CHANNELS))
    mask = torch.zeros(1, FRAMES)
    mask[:, REGION] = 1
    encoding = Encoding(
        text=whole(z("gen.text", BATCH, 7, 48)),
        text_to_music=whole(z("gen.text_t2m", BATCH, 7, 48)),
        lyric=whole(z("gen.lyric", BATCH, 20, 48)),
        task=case.task(source, mask),
    )
    job = Job(
        rows=tuple(range(BATCH)),
        noise=z(f"gen.{name}.noise", BATCH, FRAMES, CHANNELS),
        levels=case.levels,
        guidance=case.guidance,
        settings=case.settings,
        start=source.latents if case.cover_noise else None,
        preserve=Preserve(source.latents, mask.expand(BATCH, -1), Keep(0.5, 10, 0.0)) if case.injected else None,
    )
    return generate(net, encoding, silence, job)


def whole(states: Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool))
