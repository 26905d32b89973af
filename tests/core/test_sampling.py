"""Laws of the sampling loop, on velocities whose answer is known."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.pipeline.guidance import Guidance, Guide, apg, cfg
from acestep_pack.acestep_core.pipeline.options import Options, official
from acestep_pack.acestep_core.pipeline.preserve import Keep, Preserve, blend, feather
from acestep_pack.acestep_core.pipeline.sample import SOLVERS, Evaluation, SamplerSettings, limit_norm, mix, sample
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.wavelet import MODES, Dcw, correct, haar, inverse_haar

BATCH, FRAMES, CHANNELS = 2, 21, 64
LEVELS = schedule(8, 3.0)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (BATCH, FRAMES, CHANNELS)), generator=torch.Generator().manual_seed(seed))


NOISE, DATA, OTHER = numbers(1), numbers(2), numbers(3)


def straight(x: Tensor, at: Evaluation) -> Tensor:
    """The velocity of a straight path: from here, along the line that ends at DATA."""
    return (x - DATA) / at.t


def curved(x: Tensor, at: Evaluation) -> Tensor:
    """A velocity that depends on everything it may depend on."""
    return torch.tanh(x) * (1 + at.t) + 0.3 * OTHER


def fresh(seed: int = 4) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(BATCH, FRAMES, CHANNELS, generator=generator)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_steps", [1, 2, 8, 50])
def test_every_solver_reaches_the_end_of_a_straight_path(solver: str, n_steps: int) -> None:
    found = sample(straight, NOISE, schedule(n_steps, 3.0), SamplerSettings(solver), fresh_noise=fresh())
    torch.testing.assert_close(found, DATA, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_more_steps_come_closer_to_the_true_path(solver: str) -> None:
    truth = sample(curved, NOISE, schedule(200, 1.0), SamplerSettings("heun"))
    errors = [(sample(curved, NOISE, schedule(n, 1.0), SamplerSettings(solver)) - truth).norm() for n in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_heun_beats_euler_at_equal_steps() -> None:
    truth = sample(curved, NOISE, schedule(200, 1.0), SamplerSettings("heun"))
    euler, heun = (sample(curved, NOISE, schedule(8, 1.0), SamplerSettings(name)) for name in ("euler", "heun"))
    assert (heun - truth).norm() < 0.2 * (euler - truth).norm()


@pytest.mark.parametrize(("heun_last", "n_calls"), [(False, 15), (True, 16)])
def test_heun_looks_twice_at_every_step_and_at_zero_only_when_told(heun_last: bool, n_calls: int) -> None:
    seen = []

    def watched(x: Tensor, at: Evaluation) -> Tensor:
        seen.append(at)
        return curved(x, at)

    sample(watched, NOISE, LEVELS, SamplerSettings("heun", heun_last=heun_last))
    assert len(seen) == n_calls
    assert (min(at.t for at in seen) == 0) is heun_last
    assert [at.step for at in seen if not at.corrector] == list(range(8))


def test_sde_is_its_seeds_and_nothing_else() -> None:
    def run(seed: int) -> Tensor:
        return sample(curved, NOISE, LEVELS, SamplerSettings("sde"), fresh_noise=fresh(seed))

    torch.testing.assert_close(run(4), run(4), atol=0, rtol=0)
    assert not torch.allclose(run(4), run(5), atol=0.1)


def test_sde_without_noise_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match='the "sde" solver needs a source of fresh noise'):
        sample(curved, NOISE, LEVELS, SamplerSettings("sde"))


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(ema=0.0, norm_limit=0.0),
        SamplerSettings(norm_limit=1e6),
        SamplerSettings(dcw=Dcw("off", 0.5, 0.5)),
        SamplerSettings(dcw=Dcw("pix", 0.0)),
        SamplerSettings(dcw=Dcw("double", 0.0, 0.0)),
    ],
    ids=repr,
)
def test_a_neutral_setting_changes_no_bit(settings: SamplerSettings) -> None:
    plain = sample(curved, NOISE, LEVELS, SamplerSettings())
    assert torch.equal(sample(curved, NOISE, LEVELS, settings), plain)


@pytest.mark.parametrize(
    "settings",
    [SamplerSettings(ema=0.1), SamplerSettings(norm_limit=0.5)]
    + [SamplerSettings(dcw=Dcw(mode)) for mode in MODES if mode != "off"],
    ids=repr,
)
def test_a_setting_that_is_on_changes_something(settings: SamplerSettings) -> None:
    plain = sample(curved, NOISE, LEVELS, SamplerSettings())
    assert not torch.allclose(sample(curved, NOISE, LEVELS, settings), plain, atol=1e-3)


def test_the_limit_holds_item_by_item() -> None:
    v = torch.stack((10 * DATA[0], 0.1 * DATA[1]))
    limited = limit_norm(v, NOISE, 2.0)
    assert limited[0].norm() == pytest.approx(2 * NOISE[0].norm().item(), rel=1e-5)
    assert torch.equal(limited[1], v[1])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("n_frames", [1, 21])
def test_the_velocity_is_limited_and_then_mixed_with_that_of_the_step_before(
    solver: str, n_steps: int, n_frames: int
) -> None:
    noise, other = NOISE[:, :n_frames], OTHER[:, :n_frames]
    draw, drawn = fresh(), fresh()

    def fast(x: Tensor, at: Evaluation) -> Tensor:
        return 3 * torch.tanh(x) * (1 + at.t) + other

    x, last = noise, None
    for step, (t, t_next) in enumerate(pairwise(schedule(n_steps, 3.0))):
        v = fast(x, Evaluation(t, step))
        ratio = x.norm(dim=(1, 2), keepdim=True) / v.norm(dim=(1, 2), keepdim=True)
        assert (0.5 * ratio < 1).all(), "the limit must act for the test to tell anything"
        v = 0.5 * ratio * v
        v = v if last is None else 0.7 * v + 0.3 * last
        last = v
        if solver == "sde":
            x = t_next * draw()[:, :n_frames] + (1 - t_next) * (x - t * v)
        elif solver == "heun" and t_next > 0:  # whose second look is not limited
            x = x - (t - t_next) * (v + fast(x - (t - t_next) * v, Evaluation(t_next, step))) / 2
        else:
            x = x - (t - t_next) * v
    settings = SamplerSettings(solver, norm_limit=0.5, ema=0.3)
    found = sample(fast, noise, schedule(n_steps, 3.0), settings, fresh_noise=lambda: drawn()[:, :n_frames])
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SamplerSettings("dpm"), 'solver "dpm" is unknown; choose one of euler, heun, sde'),
        (lambda: SamplerSettings(norm_limit=-1), "velocity limit must be 0"),
        (lambda: SamplerSettings(ema=1.0), r"velocity EMA must be 0 \(off\) to below 1, got 1"),
        (lambda: Dcw("both"), 'DCW mode "both" is unknown'),
        (lambda: Guidance("apg2"), 'guidance method "apg2" is unknown; choose one of apg, adg, cfg'),
        (lambda: Guidance("apg", -1), "guidance must be 0 to 100, got -1"),
        (
            lambda: Guidance("apg", 7, (0.8, 0.2)),
            "must satisfy 0 <= start <= end <= 1, got 0.8 to 0.2",
        ),
        (lambda: Options(guidance_interval=(0, 2)), "guidance interval"),
        (lambda: Options(timesteps=(0.5, 0.9)), "custom timesteps must fall"),
    ],
)
def test_a_setting_out_of_range_is_refused_where_it_is_made(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_official_preset_is_the_wavelet_correction_on_turbo_and_nothing_elsewhere() -> None:
    assert official(is_turbo=True).settings.dcw == Dcw("double", 0.05, 0.02)
    assert official(is_turbo=False) == Options()


# Guidance.


@pytest.mark.parametrize("method", ["apg", "adg", "cfg"])
def test_equal_predictions_leave_nothing_to_guide(method: str) -> None:
    guided = Guide(Guidance(method, 7.0))(DATA, DATA, NOISE, Evaluation(0.5, 0))
    torch.testing.assert_close(guided, DATA, atol=1e-3, rtol=0)


def test_plain_guidance_of_one_is_the_condition_and_of_zero_is_not() -> None:
    torch.testing.assert_close(cfg(DATA, OTHER, 1.0), DATA)
    assert torch.equal(cfg(DATA, OTHER, 0.0), OTHER)


def test_apg_adds_only_what_is_orthogonal_to_the_prediction() -> None:
    guided, _ = apg(DATA, OTHER, 7.0, None)
    along = ((guided - DATA) * DATA).sum(1) / DATA.norm(dim=1)
    assert along.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("t", "applies"), [(1.0, False), (0.81, False), (0.8, True), (0.5, True), (0.2, True), (0.19, False)]
)
def test_the_interval_is_in_noise_level_and_includes_its_ends(t: float, applies: bool) -> None:
    assert Guidance("apg", 7.0, (0.2, 0.8)).applies_at(t) is applies


def test_a_corrector_leaves_the_momentum_alone() -> None:
    guide, untouched = Guide(Guidance("apg", 7.0)), Guide(Guidance("apg", 7.0))
    for each in (guide, untouched):
        each(DATA, OTHER, NOISE, Evaluation(1.0, 0))
    guide(OTHER, DATA, NOISE, Evaluation(0.9, 0, corrector=True))
    at = Evaluation(0.9, 1)
    assert torch.equal(guide(NOISE, DATA, OTHER, at), untouched(NOISE, DATA, OTHER, at))


# What a repaint keeps.

REGIONS = {
    "nothing": [],
    "everything": list(range(FRAMES)),
    "start": [0, 1, 2],
    "end": [FRAMES - 1],
    "middle": [8, 9, 10],
    "two": [3, 4, 15, 16],
}


def region(name: str) -> Tensor:
    inside = torch.zeros(BATCH, FRAMES, dtype=torch.bool)
    inside[:, REGIONS[name]] = True
    return inside


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("n_frames", [0, 1, 4, 100])
def test_feathering_is_the_distance_to_the_region_on_a_ramp(name: str, n_frames: int) -> None:
    expected = [
        max((max(0.0, 1 - abs(frame - i) / (n_frames + 1)) for i in REGIONS[name]), default=0.0)
        for frame in range(FRAMES)
    ]
    weights = feather(region(name), n_frames)
    torch.testing.assert_close(weights, torch.tensor(expected).expand(BATCH, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", REGIONS)
def test_frames_away_from_the_region_are_the_source_bit_for_bit(name: str) -> None:
    inside, width = region(name), 2
    kept = blend(NOISE, Preserve(DATA, inside, Keep(0.5, width, 0.0)))
    far, near = feather(inside, width) == 0, inside
    assert torch.equal(kept[far], DATA[far])
    assert torch.equal(kept[near], NOISE[near])


def test_without_a_crossfade_the_region_ends_at_once() -> None:
    inside = region("middle")
    expected = torch.where(inside[..., None], NOISE, DATA)
    assert torch.equal(blend(NOISE, Preserve(DATA, inside, Keep(0.5, 0, 0.0))), expected)


def test_a_mask_between_0_and_1_blends_by_its_value() -> None:
    mask = torch.linspace(0, 1, FRAMES).expand(BATCH, -1)
    kept = blend(NOISE, Preserve(DATA, mask, Keep(0.5, 0, 0.0)))
    torch.testing.assert_close(kept, mask[..., None] * NOISE + (1 - mask[..., None]) * DATA)
    assert torch.equal(kept[:, 0], DATA[:, 0])
    assert torch.equal(kept[:, -1], NOISE[:, -1])


@pytest.mark.parametrize("injection", [0.25, 0.5, 1.0])
def test_injection_puts_the_source_back_at_the_level_of_the_step(injection: float) -> None:
    inside = region("middle")
    seen: dict[int, Tensor] = {}

    def watched(x: Tensor, at: Evaluation) -> Tensor:
        seen[at.step] = x
        return curved(x, at)

    sample(watched, NOISE, LEVELS, SamplerSettings(), preserve=Preserve(DATA, inside, Keep(injection, 12, 0.0)))
    for step in range(1, 8):
        put_back = torch.equal(seen[step][~inside], mix(NOISE, DATA, LEVELS[step])[~inside])
        assert put_back is (step <= round(8 * injection)), f"before step {step}"


@pytest.mark.parametrize("start_level", [1.0, 0.6, 0.1])
def test_a_clean_start_is_mixed_with_noise_at_the_first_level(start_level: float) -> None:
    first: list[Tensor] = []
    sample(
        lambda x, at: first.append(x) or torch.zeros_like(x),
        NOISE,
        (start_level, 0.0),
        SamplerSettings(),
        start=DATA,
    )
    assert torch.equal(first[0], start_level * NOISE + (1 - start_level) * DATA)


# Wavelets.


@pytest.mark.parametrize("n_frames", [1, 2, 3, 20, 21])
def test_haar_and_back_is_the_signal_and_an_odd_one_gains_a_frame_of_zeros(n_frames: int) -> None:
    x = numbers(5, BATCH, n_frames, CHANNELS)
    back = inverse_haar(*haar(x))
    torch.testing.assert_close(back[:, :n_frames], x)
    torch.testing.assert_close(back[:, n_frames:], torch.zeros(BATCH, n_frames % 2, CHANNELS))


@pytest.mark.parametrize("n_frames", [2, 20, 64])
def test_haar_conserves_energy_and_hears_a_steady_signal_in_the_low_band_only(n_frames: int) -> None:
    x = numbers(6, BATCH, n_frames, CHANNELS)
    low, high = haar(x)
    torch.testing.assert_close(low.norm() ** 2 + high.norm() ** 2, x.norm() ** 2)
    assert torch.equal(haar(torch.ones(1, n_frames, 1))[1], torch.zeros(1, n_frames // 2, 1))


@pytest.mark.parametrize(("mode", "t"), [("low", 0.0), ("high", 1.0)])
def test_the_correction_of_a_band_fades_where_the_official_one_does(mode: str, t: float) -> None:
    assert torch.equal(correct(NOISE, DATA, t, Dcw(mode, 0.3)), NOISE)


def test_low_and_high_at_one_strength_are_double() -> None:
    low, high = (correct(NOISE, DATA, 0.4, Dcw(mode, 0.1)) - NOISE for mode in ("low", "high"))
    both = correct(NOISE, DATA, 0.4, Dcw("double", 0.1, 0.1)) - NOISE
    torch.testing.assert_close(both, low + high)
