"""Whole generations against the official code: same weights, same noise, every option it has."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.acestep import AceStep, chunk_context
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Condition
from acestep_pack.acestep_core.pipeline.guidance import Guidance, Guide
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.pipeline.sample import Evaluation, Preserve, SamplerSettings, sample
from acestep_pack.acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
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
    source: str = "silence"
    masked: bool = False
    cover: bool = False
    strength: float = 1.0
    cover_noise: float = 0.0
    injected: bool = False


SHIFT_3 = schedule(8, 3.0)
TURBO = {
    "t2m_shift3": Case(SHIFT_3),
    "t2m_shift1_steps5": Case(schedule(5, 1.0)),
    "heun": Case(SHIFT_3, SamplerSettings(solver="heun")),
    "timesteps": Case(custom_schedule((0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085, 0), turbo=True)),
    "cover": Case(SHIFT_3, source="src", cover=True),
    "cover_strength_half": Case(SHIFT_3, source="src", cover=True, strength=0.5),
    "cover_noise_0.4": Case(start_at(SHIFT_3, 1 - 0.4), source="src", cover=True, cover_noise=0.4),
    "repaint_explicit": Case(SHIFT_3, source="holed", masked=True),
    "repaint_injected": Case(SHIFT_3, source="holed", masked=True, injected=True),
    "norm_clamp_ema": Case(SHIFT_3, SamplerSettings(norm_limit=2.0, ema=0.1)),
    "extract_source": Case(SHIFT_3, source="src"),
    "dcw_double": Case(SHIFT_3, SamplerSettings(dcw=Dcw("double", 0.05, 0.02))),
}
TEN = schedule(10, 1.0)
BASE = {
    "apg": Case(TEN, guidance=Guidance("apg", 7)),
    "apg_shift3_interval": Case(schedule(10, 3.0), guidance=Guidance("apg", 5, (0.2, 0.8))),
    "adg": Case(TEN, guidance=Guidance("adg", 5)),
    "no_guidance": Case(TEN),
    "cover_strength_half_apg": Case(TEN, guidance=Guidance("apg", 7), source="src", cover=True, strength=0.5),
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
        ours = generate(model(which.split("_")[0]), name, case)
    assert_close(ours, golden()[f"gen.{which}.{name}"], WHOLE_GENERATION)


def generate(net: AceStep, name: str, case: Case) -> Tensor:
    """Return our latents of a case, from the stored inputs' formulas."""
    silence = z("gen.silence", 1, 800, CHANNELS)
    still = silence[:, :FRAMES].expand(BATCH, -1, -1)
    src = z("gen.source", BATCH, FRAMES, CHANNELS)
    inside = torch.zeros(BATCH, FRAMES, dtype=torch.bool)
    inside[:, REGION] = True
    holed = torch.where(inside[..., None], still, src)
    source = {"silence": still, "src": src, "holed": holed}[case.source]
    if case.cover:
        source = net.detokenize(net.tokenize(src, silence), torch.float32)[:, :FRAMES]
    mask = inside if case.masked else torch.ones_like(inside)

    def condition(text: str, source: Tensor) -> Condition:
        packed = net.encoder(
            whole(z(text, BATCH, 7, 48)),
            whole(z("gen.lyric", BATCH, 20, 48)),
            silence[:, :750].expand(BATCH, -1, -1),
            torch.arange(BATCH),
        )
        return Condition(packed, chunk_context(source, mask))

    main, plain = condition("gen.text", source), condition("gen.text_t2m", still)
    run, guide = Run(net, silence), Guide(case.guidance)
    switch = int((len(case.levels) - 1) * case.strength)

    def velocity(x: Tensor, at: Evaluation) -> Tensor:
        current = main if at.step < switch else plain
        rows = tuple(range(BATCH))
        if not case.guidance.applies_at(at.t):
            return run.velocity(x, at.t, [Branch(current, rows)])
        both = run.velocity(torch.cat((x, x)), at.t, [Branch(current, rows), Branch(current, rows, null=True)])
        return guide(*both.chunk(2), x, at.t, at.corrector)

    return sample(
        velocity,
        z(f"gen.{name}.noise", BATCH, FRAMES, CHANNELS),
        case.levels,
        case.settings,
        start=src if case.cover_noise else None,
        preserve=Preserve(src, inside.float(), 0.5, 10) if case.injected else None,
    )


def whole(states: Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool))
