"""The sampler's options on a tiny model through ComfyUI's guider: neutral ones change no bit, the others something."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.constants import MAX_SEED
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.generate import Job
from acestep_pack.acestep_core.pipeline.generate import generate as generate_by_core
from acestep_pack.acestep_core.pipeline.guidance import Guidance
from acestep_pack.acestep_core.pipeline.morph import Morph
from acestep_pack.acestep_core.pipeline.options import Options, Retake
from acestep_pack.acestep_core.pipeline.preserve import NOISE_MASK
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.takes import Request, noise_of
from acestep_pack.acestep_core.pipeline.tasks import Source, Task, cover, repaint
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.host import generate as generating
from acestep_pack.nodes.host import network as networks
from acestep_pack.nodes.host.conditioning import conditioning_of
from acestep_pack.nodes.host.generate import Generation, generate
from acestep_pack.nodes.host.latents import Origins, latent
from acestep_pack.nodes.host.sockets import SamplerOptions
from acestep_pack.nodes.sample import AceStepMorph, AceStepSamplerOptions, parse_seeds, parse_timesteps
from golden_models import z

FRAMES, CHANNELS, STEPS = 37, 64, 4
GUIDANCE = {"turbo": 1.0, "base": 7.0}
EMPTY, SONG = torch.zeros(1, FRAMES, CHANNELS), z("song", 1, FRAMES, CHANNELS)


@pytest.fixture(scope="module", params=["turbo", "base"])
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(variant: str, golden_model: Callable[[str], object]):
    return golden_model(variant)


def tokens(name: str, n_tokens: int) -> Tokens:
    return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))


def prompt(name: str, n_lyrics: int = 20, **given: object) -> Encoding:
    text = tokens(f"{name}.text", 7)
    return Encoding(**{"text": text, "text_to_music": text, "lyric": tokens(f"{name}.lyric", n_lyrics), **given})


def conditioning(encoding: Encoding) -> list:
    return conditioning_of(encoding, Origins())


# Of another length than the new one, so that the two can never share a batch.
OLD, NEW = prompt("old", 33), prompt("new")
CONDITIONING = conditioning(NEW)


def codes(n_plans: int) -> AudioCodes:
    return AudioCodes(tuple(tuple((plan * 7919 + 613 * i) % 64_000 for i in range(8)) for plan in range(n_plans)))


NEUTRAL = SamplerOptions(Options())


def generated(
    model, options: SamplerOptions, conditioning: list | None = None, latent_in: dict | None = None, **given: object
) -> Generation:
    settings = {"seed": 7, "n_steps": STEPS, "shift": 3.0, "guidance": GUIDANCE[model.model.variant]}
    request = Request(**{**settings, **given}, options=options.options)
    return generate(model, conditioning or CONDITIONING, latent_in or latent(EMPTY, ()), request, options.morph_from)


def make(model, options: SamplerOptions, **given: object) -> Tensor:
    """Return latents [B, T, 64] of our whole sampler node."""
    return generated(model, options, **given).latent["samples"].transpose(1, 2)


def assert_different(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() > 1e-3


# Every input of the node.

INPUTS = {given.id: given for given in AceStepSamplerOptions.GET_SCHEMA().inputs}
SOCKETS = {name for name, given in INPUTS.items() if given.io_type == "CONDITIONING"}
REQUIRED = {name: given.default for name, given in INPUTS.items() if not given.optional}


def options(**given: object) -> SamplerOptions:
    """Return what the node gives for some of its inputs; the required others are at their defaults."""
    return AceStepSamplerOptions.execute(**{**REQUIRED, **given}).result[0]


# What each input needs beside it to matter at all, and a value at which it does. On base, for guidance.
MORPH_FROM = {"morph_from": conditioning(OLD)}
ON = {
    "guidance_method": ({}, "cfg"),
    "guidance_start": ({}, 0.8),
    "guidance_end": ({}, 0.6),
    "solver": ({}, "heun"),
    "timesteps": ({}, "1, 0.5"),
    "dcw_mode": ({}, "double"),
    "dcw_scale": ({"dcw_mode": "low"}, 0.3),
    "dcw_high_scale": ({"dcw_mode": "double"}, 0.3),
    "velocity_limit": ({}, 0.3),
    "velocity_ema": ({}, 0.3),
    "preset": ({}, "official turbo"),
    "retake_variance": ({}, 0.3),
    "retake_seed": ({"retake_variance": 0.3}, 5),
    "latent_shift": ({}, 0.1),
    "latent_rescale": ({}, 0.9),
    "morph_from": ({}, MORPH_FROM["morph_from"]),
    "morph_start": (MORPH_FROM, 0.5),
    "morph_end": (MORPH_FROM, 0.5),
    "morph_samples": (MORPH_FROM, 3),
}


@pytest.fixture(scope="module")
def plain(model) -> Tensor:
    with torch.inference_mode():
        return make(model, NEUTRAL)


def test_every_input_is_tested_here() -> None:
    assert set(ON) == set(INPUTS)


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_at_its_default_changes_no_bit(model, plain: Tensor, name: str) -> None:
    given = {} if name in SOCKETS else {name: INPUTS[name].default}
    assert torch.equal(make(model, options(**given)), plain)


def test_all_inputs_at_their_defaults_change_no_bit_and_are_not_mentioned(model, plain: Tensor) -> None:
    neutral = options(**{name: given.default for name, given in INPUTS.items() if name not in SOCKETS})
    made = generated(model, neutral)
    assert torch.equal(made.latent["samples"].transpose(1, 2), plain)
    assert made.summary == generated(model, NEUTRAL).summary


@pytest.mark.parametrize("variant", ["base"], indirect=True)
@pytest.mark.parametrize("name", ON)
def test_an_input_that_is_on_changes_something(model, name: str) -> None:
    beside, value = ON[name]
    off, on = ({**beside}, {**beside, name: value})
    song = latent(SONG, ())
    assert_different(make(model, options(**on), latent_in=song), make(model, options(**off), latent_in=song))


# Where each number of the node ends up.
NUMBERS = {
    "guidance_start": lambda made: made.guidance_interval[0],
    "guidance_end": lambda made: made.guidance_interval[1],
    "dcw_scale": lambda made: made.settings.dcw.scale,
    "dcw_high_scale": lambda made: made.settings.dcw.high_scale,
    "velocity_limit": lambda made: made.settings.norm_limit,
    "velocity_ema": lambda made: made.settings.ema,
    "retake_variance": lambda made: made.retake.variance,
    "retake_seed": lambda made: made.retake.seed,
    "latent_shift": lambda made: made.settings.latent_shift,
    "latent_rescale": lambda made: made.settings.latent_rescale,
    "morph_start": lambda made: made.morph.start,
    "morph_end": lambda made: made.morph.end,
    "morph_samples": lambda made: made.morph.n_draws,
}


def test_every_number_of_the_node_is_known_here() -> None:
    assert set(NUMBERS) == {name for name, given in INPUTS.items() if given.io_type in ("FLOAT", "INT")}


@pytest.mark.parametrize("edge", ["min", "max"])
@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_arrive_as_they_are(name: str, edge: str) -> None:
    value = getattr(INPUTS[name], edge)
    made = options(**MORPH_FROM, **{name: value}).options
    assert NUMBERS[name](made) == value
    assert all(NUMBERS[other](made) == INPUTS[other].default for other in NUMBERS if other != name)


# Retake.


def test_all_variance_is_the_take_of_the_retake_seed(model, plain: Tensor) -> None:
    assert_same(make(model, options(retake_seed=7, retake_variance=1.0), seed=123), plain)


def test_a_retake_is_its_seeds_and_the_same_alone_or_among_others(model) -> None:
    half = options(retake_seed=50, retake_variance=0.5)
    three = make(model, half, takes_per_plan=3)
    for i in range(3):
        assert_same(three[i], make(model, options(retake_seed=50 + i, retake_variance=0.5), seed=7 + i)[0])
    assert_different(three[0], three[1])


def test_retake_seeds_start_over_behind_the_last(model, plain: Tensor) -> None:
    both = make(model, options(retake_seed=MAX_SEED, retake_variance=1.0), takes_per_plan=2)
    assert_same(both[1], make(model, NEUTRAL, seed=0)[0])


def test_a_retake_of_sde_is_turned_in_every_step(model) -> None:
    sde = {"solver": "sde", "retake_variance": 1.0, "retake_seed": 7}
    assert_same(make(model, options(**sde), seed=123), make(model, options(solver="sde")))


@pytest.mark.parametrize("variant", ["turbo"], indirect=True)
@pytest.mark.parametrize("given", [{"solver": "sde"}, MORPH_FROM], ids=["sde", "morph"])
@pytest.mark.parametrize("variance", [0.0, 0.5])
def test_no_noise_of_a_take_is_drawn_twice(model, monkeypatch, given: dict, variance: float) -> None:
    drawn: list[Tensor] = []

    def watched(patcher, prompt, job: Job, **_more) -> tuple[Tensor, networks.Sampling]:
        start = [] if job.morph else [job.noise]  # a morph begins from the song
        drawn.extend((*start, job.fresh_noise(), job.fresh_noise()))
        return job.noise, networks.Sampling()

    monkeypatch.setattr(generating, "run", watched)
    make(model, options(**given, retake_variance=variance, retake_seed=9), latent_in=latent(SONG, ()))
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).abs() < 0.1


# Latent shift and rescale.


def test_frames_that_a_mask_keeps_are_neither_shifted_nor_rescaled(model) -> None:
    mask = torch.zeros(1, 1, FRAMES)
    mask[..., :10] = 1
    masked = {**latent(SONG, ()), "noise_mask": mask}
    made = make(model, options(latent_shift=0.2, latent_rescale=0.5), latent_in=masked)
    plain = make(model, options(), latent_in=masked)
    far = 10 + NOISE_MASK.crossfade_frames
    assert torch.equal(made[:, far:], SONG[:, far:])
    assert torch.equal(made[:, :10], 0.5 * plain[:, :10] + 0.2)


def test_frames_that_a_task_keeps_are_neither_shifted_nor_rescaled(model) -> None:
    song = z("song", 1, 300, CHANNELS)
    mask = torch.zeros(1, 300)
    mask[:, 100:200] = 1
    task = repaint(Source(song), mask)
    empty = torch.zeros(1, task.window_frames, CHANNELS)
    made = make(
        model,
        options(latent_shift=0.2, latent_rescale=0.5),
        conditioning=conditioning(prompt("new", task=task)),
        latent_in=latent(empty, ()),
    )
    far = torch.ones(300, dtype=torch.bool)
    far[100 - task.keep.crossfade_frames : 200 + task.keep.crossfade_frames] = False
    assert torch.equal(made[:, far], song[:, far])


# Morph.


def assert_same(ours: Tensor, theirs: Tensor, max_error: float = 1e-4) -> None:
    """Fail unless two results are one up to the order of sums, which kernels choose by the batch size."""
    error = (ours - theirs).abs().max().item()
    assert error <= max_error * theirs.abs().max(), f"max error {error:.1e}"


def by_hand(model, change: Morph, scale: float, n_takes: int) -> Tensor:
    """Return the morph by the core alone, with no ComfyUI in between."""
    seeds = tuple(7 + i for i in range(n_takes))
    job = Job(
        rows=(0,) * n_takes,
        noise=torch.zeros(n_takes, FRAMES, CHANNELS),
        levels=schedule(STEPS, 3.0),
        guidance=Guidance("apg", scale),
        start=SONG.expand(n_takes, -1, -1),
        fresh_noise=noise_of(seeds, seeds, Retake(), FRAMES),
        morph=change,
    )
    return generate_by_core(model.model.diffusion_model, NEW, model.model.silence, job, origin=OLD)


@pytest.mark.parametrize("n_takes", [1, 2])
@pytest.mark.parametrize(("start", "end", "n_draws"), [(0.0, 1.0, 1), (0.25, 0.75, 2), (0.5, 0.5, 1)])
def test_a_morph_through_comfyui_is_the_core_s(model, start: float, end: float, n_draws: int, n_takes: int) -> None:
    asked = options(**MORPH_FROM, morph_start=start, morph_end=end, morph_samples=n_draws)
    found = make(model, asked, latent_in=latent(SONG, ()), takes_per_plan=n_takes)
    change = Morph(start, end, n_draws)
    assert_same(found, by_hand(model, change, GUIDANCE[model.model.variant], n_takes), 1e-3)


def test_the_morph_node_asks_for_what_the_sampler_options_ask_for(model) -> None:
    (beside,) = AceStepMorph.execute(
        **MORPH_FROM, start=0.25, end=0.75, samples=2, options=options(velocity_ema=0.3)
    ).result
    given = {"morph_start": 0.25, "morph_end": 0.75, "morph_samples": 2, "velocity_ema": 0.3}
    inside = options(**MORPH_FROM, **given)
    song = latent(SONG, ())
    assert torch.equal(make(model, beside, latent_in=song), make(model, inside, latent_in=song))


def test_a_morph_from_the_prompt_itself_is_the_song(model) -> None:
    asked = options(morph_from=conditioning(NEW), morph_samples=2)
    assert torch.equal(make(model, asked, latent_in=latent(SONG, ())), SONG)


def test_a_morph_is_its_seed_and_the_same_alone_in_chunks_or_among_others(model, monkeypatch) -> None:
    asked, song = options(**MORPH_FROM, morph_samples=2, morph_end=0.75), latent(SONG, ())
    three = make(model, asked, latent_in=song, takes_per_plan=3)
    for i in range(3):
        assert_same(three[i], make(model, asked, latent_in=song, seed=7 + i)[0], 1e-3)
    monkeypatch.setattr(generating.memory, "room_beside", lambda patcher: 0)
    assert_same(make(model, asked, latent_in=song, takes_per_plan=3), three, 1e-3)


def test_a_morph_with_all_variance_is_the_morph_of_the_retake_seed(model) -> None:
    song = latent(SONG, ())
    turned = make(model, options(**MORPH_FROM, retake_seed=7, retake_variance=1.0), latent_in=song, seed=123)
    assert_same(turned, make(model, options(**MORPH_FROM), latent_in=song))


def test_a_morph_under_a_noise_mask_leaves_the_rest_of_the_song(model) -> None:
    mask = torch.zeros(1, 1, FRAMES)
    mask[..., :10] = 1
    made = make(model, options(**MORPH_FROM), latent_in={**latent(SONG, ()), "noise_mask": mask})
    far = 10 + NOISE_MASK.crossfade_frames
    assert torch.equal(made[:, far:], SONG[:, far:])
    assert_different(made[:, :10], SONG[:, :10])


def cover_of(song: Tensor, **given: object) -> Task:
    return cover(Source(song), **given)


WHOLE = z("whole", 1, 150, CHANNELS)


@pytest.mark.parametrize("hints", [True, False], ids=["cover", "cover-nofsq"])
def test_a_morph_of_a_cover_begins_from_the_cover_s_source_where_the_latent_is_empty(model, hints: bool) -> None:
    old, new = (conditioning(prompt(name, task=cover_of(WHOLE, hints=hints))) for name in ("old", "new"))
    given = {"conditioning": new}
    empty = make(model, options(morph_from=old), latent_in=latent(torch.zeros_like(WHOLE), ()), **given)
    connected = make(model, options(morph_from=old), latent_in=latent(WHOLE, ()), **given)
    assert torch.equal(empty, connected)
    assert torch.equal(make(model, options(morph_from=new), latent_in=latent(WHOLE, ()), **given), WHOLE)


def test_every_plan_is_morphed_from_its_own_song_or_from_the_only_one(model) -> None:
    planned = conditioning(prompt("new", codes=codes(2)))
    asked = options(morph_from=conditioning(prompt("old", codes=codes(2))))
    songs = torch.cat((SONG, z("second song", 1, FRAMES, CHANNELS)))
    own, shared = (make(model, asked, conditioning=planned, latent_in=latent(each, ())) for each in (songs, SONG))
    assert_same(own[0], shared[0])
    assert_different(own[1], shared[1])
    old, new = (conditioning(prompt(name, codes=AudioCodes(codes(2).sequences[1:]))) for name in ("old", "new"))
    alone = make(model, options(morph_from=old), conditioning=new, latent_in=latent(songs[1:], ()), seed=8)
    assert_same(own[1], alone[0], 1e-3)


WARNING = '"morph_from" has other codes, task or reference than the conditioning: more than the words will change'


@pytest.mark.parametrize(
    ("old", "warnings"),
    [(OLD, 0), (prompt("old", codes=codes(1)), 1), (prompt("old", timbre=z("timbre", 1, 750, CHANNELS)), 1)],
    ids=["the same", "codes", "timbre"],
)
def test_prompts_that_hear_different_things_are_mentioned(model, old: Encoding, warnings: int) -> None:
    made = generated(model, options(morph_from=conditioning(old)), latent_in=latent(SONG, ()))
    assert [warning for warning in made.warnings if "morph" in warning] == [WARNING] * warnings
    assert not any("nothing here uses it" in warning for warning in made.warnings)
    assert "euler, morph 0 to 1, seed 7" in made.summary


REGION = torch.ones(1, 150)
MORPH_ERRORS = {
    "no song": ({}, OLD, EMPTY, "a morph needs the song it begins from, this latent is empty; connect what"),
    "a task": (
        {"task": repaint(Source(WHOLE), REGION)},
        OLD,
        WHOLE,
        "a morph goes with a cover or with no task, not with repaint; disconnect it",
    ),
    "a task of the other prompt": (
        {},
        prompt("old", task=repaint(Source(WHOLE), REGION)),
        WHOLE,
        "a morph goes with a cover or with no task, not with repaint; disconnect it",
    ),
    "noise": ({"task": cover_of(WHOLE, noise_strength=0.5)}, OLD, WHOLE, 'set "noise_strength" of the cover to 0'),
    "another length": (
        {},
        prompt("old", task=cover_of(z("longer", 1, 200, CHANNELS))),
        WHOLE,
        "the latent has 150 frames, the cover of the morph 200; use a cover of the same song",
    ),
    "more plans": ({}, prompt("old", codes=codes(2)), SONG, '"morph_from" has 2 plans, the conditioning 1; give it'),
    "more songs": ({}, OLD, SONG.repeat(3, 1, 1), "a morph takes one song or one for each plan, here 1"),
}


@pytest.mark.parametrize("variant", ["turbo"], indirect=True)
@pytest.mark.parametrize("name", MORPH_ERRORS)
def test_a_morph_that_cannot_be_is_refused_in_one_sentence(model, monkeypatch, name: str) -> None:
    given, old, song, sentence = MORPH_ERRORS[name]
    monkeypatch.setattr(generating, "run", None)  # nothing is sampled
    with pytest.raises(ValueError, match=sentence):
        make(
            model,
            options(morph_from=conditioning(old)),
            conditioning=conditioning(prompt("new", **given)),
            latent_in=latent(song, ()),
        )


@pytest.mark.parametrize(
    "given",
    [
        {"guidance_method": "adg"},
        {"solver": "heun"},
        {"solver": "sde"},
        {"dcw_mode": "low"},
        {"preset": "official turbo"},
    ],
    ids=str,
)
def test_the_node_refuses_what_a_morph_cannot_follow(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a morph works with euler, apg or cfg, and no wavelet correction, not with"):
        options(**MORPH_FROM, **given)


def test_the_official_preset_keeps_what_lies_behind_it() -> None:
    asked = options(preset="official turbo", solver="heun", retake_seed=3, retake_variance=0.2, latent_shift=0.1)
    assert asked.options.summary(guided=False) == "euler, wavelet correction double, retake 0.2 of seed 3, latents +0.1"


# Numbers in a text field.


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        (parse_seeds, "1, two", '"two" is not a seed; write numbers separated by commas'),
        (parse_seeds, "1.5", '"1.5" is not a seed'),
        (parse_timesteps, "1; 0.5", '"1;" is not a timestep'),
    ],
)
def test_what_is_no_number_is_named(parse, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(text)


def test_numbers_may_be_separated_by_commas_spaces_or_lines() -> None:
    assert parse_seeds(" 7,8\n42 ") == (7, 8, 42)
    assert parse_timesteps("1, .5 0") == (1.0, 0.5, 0.0)
    assert parse_seeds("") == parse_timesteps(" \n") == ()
