"""Options that are no step of the sampler: the retake, what is done to finished latents, and what they tell."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.pipeline.morph import Morph
from acestep_pack.acestep_core.pipeline.options import Options, Retake, official
from acestep_pack.acestep_core.pipeline.preserve import Keep, Preserve
from acestep_pack.acestep_core.pipeline.sample import Evaluation, SamplerSettings, sample
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.wavelet import Dcw

BATCH, FRAMES, CHANNELS = 2, 501, 64
LEVELS = schedule(4, 3.0)


def numbers(seed: int) -> Tensor:
    return torch.randn(BATCH, FRAMES, CHANNELS, generator=torch.Generator().manual_seed(seed))


NOISE, OTHER, SONG = numbers(1), numbers(2), numbers(3)


def curved(x: Tensor, at: Evaluation) -> Tensor:
    return torch.tanh(x) * (1 + at.t)


# Retake.


def test_no_variance_is_the_noise_and_all_of_it_is_the_other() -> None:
    assert torch.equal(Retake(0, 0.0).mix(NOISE, OTHER), NOISE)
    torch.testing.assert_close(Retake(0, 1.0).mix(NOISE, OTHER), OTHER, atol=1e-12, rtol=0)


@pytest.mark.parametrize("variance", [0.1, 0.3, 0.5, 0.9])
def test_turned_noise_is_as_loud_as_noise_and_as_far_as_the_angle_says(variance: float) -> None:
    turned = Retake(0, variance).mix(NOISE, OTHER)
    assert turned.std().item() == pytest.approx(1, abs=0.01)
    cosine = torch.cosine_similarity(turned.flatten(), NOISE.flatten(), dim=0).item()
    assert cosine == pytest.approx(math.cos(variance * math.pi / 2), abs=0.02)


# Finished latents.


def made(settings: SamplerSettings, preserve: Preserve | None = None) -> Tensor:
    return sample(curved, NOISE, LEVELS, settings, preserve=preserve)


def test_finished_latents_are_rescaled_and_then_shifted() -> None:
    expected = made(SamplerSettings()) * 0.9 + 0.1
    assert torch.equal(made(SamplerSettings(latent_shift=0.1, latent_rescale=0.9)), expected)


@pytest.mark.parametrize("injection", [0.0, 1.0])
def test_what_is_kept_is_neither_rescaled_nor_shifted(injection: float) -> None:
    mask = torch.zeros(BATCH, FRAMES)
    mask[:, 200:300] = 1
    kept = Preserve(SONG, mask, Keep(injection, 5, 0.0))
    plain, adjusted = (
        made(settings, kept) for settings in (SamplerSettings(), SamplerSettings(latent_shift=0.2, latent_rescale=0.5))
    )
    far = torch.ones(FRAMES, dtype=torch.bool)
    far[195:305] = False
    assert torch.equal(adjusted[:, far], SONG[:, far])
    assert torch.equal(adjusted[:, 200:300], 0.5 * plain[:, 200:300] + 0.2)


# What is refused.

MORPH = Morph()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Retake(0, 1.5), r"retake variance must be 0 \(off\) to 1, got 1.5"),
        (lambda: Retake(-1), "retake seed -1 is outside 0"),
        (lambda: SamplerSettings(latent_rescale=0.0), "latent rescale must be above 0, 1 is off, got 0"),
        (lambda: SamplerSettings(latent_rescale=math.nan), "latent rescale must be above 0, 1 is off, got nan"),
        (lambda: Options("adg", morph=MORPH), "a morph works with euler, apg or cfg, and no wavelet .*, not with adg;"),
        (lambda: Options(settings=SamplerSettings("heun"), morph=MORPH), "not with heun; change that or disconnect"),
        (lambda: Options(settings=SamplerSettings("sde"), morph=MORPH), "not with sde; change that"),
        (
            lambda: Options("adg", settings=SamplerSettings("heun", dcw=Dcw("double")), morph=MORPH),
            "not with heun, adg, wavelet correction double; change",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


# What they tell.


@pytest.mark.parametrize(
    ("options", "guided", "text"),
    [
        (Options(), False, "euler"),
        (Options(), True, "euler"),
        (Options("adg", (0.2, 0.8)), True, "adg, guidance at noise 0.2 to 0.8, euler"),
        (Options("adg", (0.2, 0.8)), False, "euler"),
        (official(is_turbo=True), False, "euler, wavelet correction double"),
        (
            Options(settings=SamplerSettings("heun", norm_limit=2, ema=0.1)),
            False,
            "heun, velocity limit 2, velocity EMA 0.1",
        ),
        (Options(retake=Retake(9, 0.25)), False, "euler, retake 0.25 of seed 9"),
        (Options(retake=Retake(9, 0)), False, "euler"),
        (
            Options(settings=SamplerSettings(latent_shift=-0.04, latent_rescale=0.91)),
            False,
            "euler, latents × 0.91, latents -0.04",
        ),
        (Options(morph=MORPH), False, "euler, morph 0 to 1"),
        (Options(morph=Morph(0.1, 0.5, 3)), False, "euler, morph 0.1 to 0.5, 3 samples a step"),
    ],
)
def test_a_summary_names_what_is_on_and_nothing_else(options: Options, guided: bool, text: str) -> None:
    assert options.summary(guided) == text
