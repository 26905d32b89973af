"""Laws of the morph, on prompts whose velocities are known, and a slow writing-out of it to compare with."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.pipeline.guidance import Guidance, Guide
from acestep_pack.acestep_core.pipeline.morph import Morph, MorphGuide, morph
from acestep_pack.acestep_core.pipeline.preserve import Keep, Preserve
from acestep_pack.acestep_core.pipeline.sample import Evaluation, SamplerSettings, Velocity, mix, sample
from acestep_pack.acestep_core.pipeline.schedule import schedule

BATCH, FRAMES, CHANNELS = 2, 21, 64
LEVELS = schedule(8, 3.0)
PLAIN = SamplerSettings()


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (BATCH, FRAMES, CHANNELS)), generator=torch.Generator().manual_seed(seed))


SONG, OLD, NEW, NOTHING = (numbers(seed) for seed in (1, 2, 3, 4))


def says(prompt: Tensor, x: Tensor, at: Evaluation) -> Tensor:
    """A velocity that depends on everything it may depend on."""
    return torch.tanh(x + 0.2 * prompt) * (1 + at.t) + 0.3 * prompt


def prompts(x: Tensor, at: Evaluation) -> Tensor:
    return says(OLD if at.origin else NEW, x, at)


def one_prompt(x: Tensor, at: Evaluation) -> Tensor:
    return says(NEW, x, at)


def fresh(items: range = range(BATCH)) -> Callable[[], Tensor]:
    """Noise for some items of the batch, each from its own generator."""
    generators = [torch.Generator().manual_seed(40 + item) for item in items]
    return lambda: torch.stack([torch.randn(FRAMES, CHANNELS, generator=g) for g in generators])


def change(start: float = 0.0, end: float = 1.0, n_draws: int = 1) -> Morph:
    return Morph(start, end, n_draws)


WINDOWS = [(0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (0.25, 1.0), (0.5, 0.5), (0.0, 0.0), (1.0, 1.0)]


@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("settings", [PLAIN, SamplerSettings(norm_limit=0.5, ema=0.2)], ids=["plain", "limit and EMA"])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
def test_two_prompts_that_are_one_return_the_song(start: float, settings: SamplerSettings, n_draws: int) -> None:
    made = morph(one_prompt, SONG, LEVELS, change(start, n_draws=n_draws), settings, fresh())
    assert torch.equal(made, SONG)


@pytest.mark.parametrize("where", [0.0, 0.25, 0.3, 0.5, 0.99])
def test_an_empty_window_is_ordinary_sampling_from_the_noised_song(where: float) -> None:
    made = morph(prompts, SONG, LEVELS, change(where, where), PLAIN, fresh())
    ordinary = sample(one_prompt, fresh()(), LEVELS[int(8 * where) :], PLAIN, start=SONG)
    assert torch.equal(made, ordinary)


def test_prompts_that_differ_by_a_constant_move_the_song_by_it_whatever_the_noise() -> None:
    made = morph(lambda x, at: OLD if at.origin else NEW, SONG, LEVELS, change(n_draws=2), PLAIN, fresh())
    torch.testing.assert_close(made, SONG - (NEW - OLD), atol=1e-5, rtol=0)


def test_prompts_that_know_where_the_song_is_and_should_be_take_it_there() -> None:
    def straight(x: Tensor, at: Evaluation) -> Tensor:
        return (x - (SONG if at.origin else NEW)) / at.t

    made = morph(straight, SONG, LEVELS, change(), PLAIN, fresh())
    torch.testing.assert_close(made, NEW, atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
def test_an_item_of_a_batch_is_the_item_alone(window: tuple[float, float]) -> None:
    def alone(item: int) -> Velocity:
        return lambda x, at: says((OLD if at.origin else NEW)[item : item + 1], x, at)

    both = morph(prompts, SONG, LEVELS, change(*window, n_draws=2), PLAIN, fresh())
    for i in range(BATCH):
        one = morph(alone(i), SONG[i : i + 1], LEVELS, change(*window, n_draws=2), PLAIN, fresh(range(i, i + 1)))
        torch.testing.assert_close(both[i : i + 1], one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_draws", [1, 2])
@pytest.mark.parametrize("window", WINDOWS)
def test_both_prompts_are_asked_inside_the_window_the_new_one_behind_it_and_none_before(
    window: tuple[float, float], n_draws: int
) -> None:
    asked, told = [], []

    def watched(x: Tensor, at: Evaluation) -> Tensor:
        asked.append((at.step, at.origin, at.t))
        return prompts(x, at)

    morph(
        watched,
        SONG,
        LEVELS,
        change(*window, n_draws),
        PLAIN,
        fresh(),
        on_step=lambda index, data: told.append((index, data.shape)),
    )
    first, last = (int(8 * part) for part in window)
    expected = [(step, origin) for step in range(first, last) for origin in (True, False) for _ in range(n_draws)]
    expected += [(step, False) for step in range(last, 8)]
    assert asked == [(step, origin, LEVELS[step]) for step, origin in expected]
    assert told == [(step, SONG.shape) for step in range(first, 8)]


# What is kept.


@pytest.mark.parametrize("window", WINDOWS)
def test_frames_that_are_kept_are_the_song_bit_for_bit_before_and_after_every_step(window: tuple[float, float]) -> None:
    mask = torch.zeros(BATCH, FRAMES)
    mask[:, 8:12] = 1
    outside = mask[0] == 0
    drawn: list[Tensor] = []
    draw = fresh()

    def watched(x: Tensor, at: Evaluation) -> Tensor:
        # Outside of the region both prompts hear the song, noised by what was drawn last.
        torch.testing.assert_close(x[:, outside], mix(drawn[-1], SONG, at.t)[:, outside], atol=1e-6, rtol=0)
        return prompts(x, at)

    settings = SamplerSettings(latent_shift=0.1, latent_rescale=0.9)
    kept = Preserve(SONG, mask, Keep(1.0, 2, 0.0))
    made = morph(
        watched, SONG, LEVELS, change(*window), settings, lambda: drawn.append(draw()) or drawn[-1], preserve=kept
    )
    far = torch.ones(FRAMES, dtype=torch.bool)
    far[6:14] = False
    assert torch.equal(made[:, far], SONG[:, far])
    assert not torch.allclose(made[:, ~outside], SONG[:, ~outside], atol=1e-2)


# Guidance.


def answers(x: Tensor, at: Evaluation) -> tuple[Tensor, Tensor]:
    return says(OLD if at.origin else NEW, x, at), says(NOTHING, x, at)


def test_a_guide_of_one_draw_a_step_is_the_ordinary_guide_of_either_prompt() -> None:
    both, ordinary = MorphGuide(Guidance("apg", 7.0)), {flag: Guide(Guidance("apg", 7.0)) for flag in (True, False)}
    for step in range(3):
        for origin in (True, False):
            at = Evaluation(LEVELS[step], step, origin=origin)
            cond, uncond = answers(numbers(10 + step), at)
            assert torch.equal(both(cond, uncond, SONG, at), ordinary[origin](cond, uncond, SONG, at))


def test_every_draw_of_a_step_is_guided_as_if_it_were_the_only_one() -> None:
    guide = MorphGuide(Guidance("apg", 7.0))
    guide(*answers(SONG, Evaluation(1.0, 0)), SONG, Evaluation(1.0, 0))
    at = Evaluation(0.9, 1)
    drawn = answers(numbers(20), at)
    first = guide(*drawn, SONG, at)
    guide(*answers(numbers(21), at), SONG, at)
    assert torch.equal(guide(*drawn, SONG, at), first)


def guided(guide: MorphGuide, scale: float, interval: tuple[float, float]) -> Velocity:
    def velocity(x: Tensor, at: Evaluation) -> Tensor:
        cond, uncond = answers(x, at)
        return guide(cond, uncond, x, at) if scale > 1 and interval[0] <= at.t <= interval[1] else cond

    return velocity


def slow_morph(
    levels: tuple[float, ...],
    n_min: float,
    n_max: float,
    n_avg: int,
    limit: float,
    ema: float,
    scale: float,
    interval: tuple[float, float],
    draw: Callable[[], Tensor],
) -> Tensor:
    """Return the morph as the official code defines it: one formula a line, one state a name, nothing shared."""
    n = len(levels) - 1
    averages = {"src": torch.zeros_like(SONG), "tar": torch.zeros_like(SONG)}
    last: dict[str, Tensor | None] = {"src": None, "tar": None}

    def differs(side: str, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        cond, uncond = answers(x, Evaluation(t, 0, origin=side == "src"))
        return cond, cond - uncond

    def apg(cond: Tensor, average: Tensor) -> Tensor:
        made = cond.clone()
        for b in range(BATCH):
            for c in range(CHANNELS):
                d, towards = average[b, :, c], cond[b, :, c].double()
                d = (d * min(1.0, 2.5 / float(d.norm()))).double()
                u = towards / towards.norm()
                made[b, :, c] += ((scale - 1) * (d - (d @ u) * u)).float()
        return made

    def clamped(v: Tensor, x: Tensor) -> Tensor:
        if limit == 0:
            return v
        return torch.stack([v[b] * min(1.0, limit * float(x[b].norm()) / float(v[b].norm())) for b in range(BATCH)])

    def smoothed(side: str, v: Tensor) -> Tensor:
        before = last[side]
        last[side] = v = v if before is None or ema == 0 else (1 - ema) * v + ema * before
        return v

    z, x_tar = SONG.clone(), None
    for i in range(n):
        t, t_next = levels[i], levels[i + 1]
        is_guided = scale > 1 and interval[0] <= t <= interval[1]
        if i < int(n * n_min):
            continue
        if i < int(n * n_max):
            velocities = {"src": torch.zeros_like(SONG), "tar": torch.zeros_like(SONG)}
            differences = {"src": torch.zeros_like(SONG), "tar": torch.zeros_like(SONG)}
            for _ in range(n_avg):
                eps = draw()
                z_src = (1 - t) * SONG + t * eps
                z_tar = z + z_src - SONG
                for side, x in (("src", z_src), ("tar", z_tar)):
                    cond, d = differs(side, x, t)
                    v = apg(cond, d - 0.75 * averages[side]) if is_guided else cond
                    velocities[side] += clamped(v, x) / n_avg
                    differences[side] += d / n_avg
            if is_guided:
                averages = {side: differences[side] - 0.75 * averages[side] for side in averages}
            v_src, v_tar = smoothed("src", velocities["src"]), smoothed("tar", velocities["tar"])
            z = z + (t_next - t) * (v_tar - v_src)
            continue
        if x_tar is None:
            eps = draw()
            x_tar = z + ((1 - t) * SONG + t * eps) - SONG
        cond, d = differs("tar", x_tar, t)
        if is_guided:
            averages["tar"] = d - 0.75 * averages["tar"]
            cond = apg(cond, averages["tar"])
        x_tar = x_tar + (t_next - t) * smoothed("tar", clamped(cond, x_tar))
    return z if x_tar is None else x_tar


@pytest.mark.parametrize("n_avg", [1, 3])
@pytest.mark.parametrize(("limit", "ema"), [(0.0, 0.0), (0.6, 0.25)])
@pytest.mark.parametrize(("scale", "interval"), [(1.0, (0.0, 1.0)), (7.0, (0.0, 1.0)), (4.0, (0.5, 0.93))])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_morph_is_what_the_official_formulas_say(
    window: tuple[float, float], scale: float, interval: tuple[float, float], limit: float, ema: float, n_avg: int
) -> None:
    velocity = guided(MorphGuide(Guidance("apg", scale, interval)), scale, interval)
    settings = SamplerSettings(norm_limit=limit, ema=ema)
    found = morph(velocity, SONG, LEVELS, change(*window, n_avg), settings, fresh())
    expected = slow_morph(LEVELS, *window, n_avg, limit, ema, scale, interval, fresh())
    error = (found - expected).abs().max().item()
    assert error <= 1e-4 * expected.abs().max(), f"max error {error:.1e}"


# What is refused.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: change(0.6, 0.4), "a morph must satisfy 0 <= start <= end <= 1, got 0.6 to 0.4"),
        (lambda: change(-0.1), "got -0.1 to 1"),
        (lambda: change(0.0, 1.1), "got 0 to 1.1"),
        (lambda: change(n_draws=0), "a morph needs at least 1 sample of noise a step, got 0"),
    ],
)
def test_a_morph_out_of_range_is_refused_where_it_is_made(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
