"""Our MODEL among ComfyUI's own samplers, guiders and LoRA loaders, and our sampler on top of them."""

import functools
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_patcher
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from safetensors.torch import save_file
from torch import Tensor

import golden_models
import nodes as core_nodes  # ComfyUI's own, not ours
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.generate import Job
from acestep_pack.acestep_core.pipeline.generate import generate as generate_by_core
from acestep_pack.acestep_core.pipeline.guidance import Guidance
from acestep_pack.acestep_core.pipeline.options import Options
from acestep_pack.acestep_core.pipeline.preserve import NOISE_MASK, Keep, Preserve
from acestep_pack.acestep_core.pipeline.run import Run
from acestep_pack.acestep_core.pipeline.sample import SamplerSettings
from acestep_pack.acestep_core.pipeline.schedule import custom_schedule, schedule, start_at
from acestep_pack.acestep_core.pipeline.takes import Request
from acestep_pack.acestep_core.pipeline.tasks import Source, cover, repaint, text2music
from acestep_pack.acestep_core.pipeline.wavelet import Dcw
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.host import generate as generating
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host import network as networks
from acestep_pack.nodes.host.conditioning import Prompt, conditioning_of
from acestep_pack.nodes.host.generate import generate
from acestep_pack.nodes.host.guider import run
from acestep_pack.nodes.host.latents import ACESTEP_KEY, Origins, latent, latent_takes
from golden_models import WHOLE_GENERATION, assert_close, golden, z

BATCH, FRAMES, CHANNELS = 2, 61, 64
SHIFT_3, TEN = schedule(8, 3.0), schedule(10, 1.0)
N_CODES = 13  # more than fill the frames


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """Return a loader of the golden models through our own: load("2b_turbo", "fp32")."""
    root = tmp_path_factory.mktemp("golden")

    @functools.cache
    def folder(which: str) -> Path:
        size, variant = which.split("_")
        path = root / which
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"is_turbo": variant == "turbo"}))
        save_file(golden_models.weights(size), path / "model.safetensors")
        torch.save(z("gen.silence", 1, 800, CHANNELS).transpose(1, 2).contiguous(), path / "silence_latent.pt")
        return path

    @functools.cache
    def loaded(which: str, weight_dtype: str = "fp32") -> object:
        with torch.inference_mode():
            return models.load_model(folder(which), "auto", weight_dtype)

    return loaded


@pytest.fixture
def turbo(load):
    return load("2b_turbo")


@pytest.fixture
def base(load):
    return load("2b_base")


# What goes in.


def whole(states: Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool))


def song(**given: object) -> Encoding:
    """The golden text and lyric of one item, read by nobody."""
    fields = {
        "text": whole(z("gen.text", BATCH, 7, 48)[:1]),
        "text_to_music": whole(z("gen.text_t2m", BATCH, 7, 48)[:1]),
        "lyric": whole(z("gen.lyric", BATCH, 20, 48)[:1]),
    }
    return Encoding(**{**fields, **given})


def conditioning(encoding: Encoding, **extras: object) -> list:
    ((states, entries),) = conditioning_of(encoding, Origins())
    return [[states, {**entries, **extras}]]


def zeroed(positive: list) -> list:
    return core_nodes.ConditioningZeroOut().zero_out(positive)[0]


def two_plans() -> AudioCodes:
    return AudioCodes(tuple(tuple((plan * 7919 + 613 * i) % 64_000 for i in range(N_CODES)) for plan in (1, 2)))


def noise(n_items: int = BATCH, n_frames: int = FRAMES) -> Tensor:
    return z("noise", n_items, n_frames, CHANNELS)


def under_core(
    model,
    positive: list,
    cfg_scale: float = 1.0,
    negative: list | None = None,
    levels: tuple[float, ...] = SHIFT_3,
    given: Tensor | None = None,
    callback: Callable | None = None,
) -> Tensor:
    """Return latents [B, T, 64] that core's KSampler makes with Euler."""
    given = (noise() if given is None else given).transpose(1, 2).contiguous()
    samples = comfy.sample.sample(
        model,
        given,
        steps=len(levels) - 1,
        cfg=cfg_scale,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=zeroed(positive) if negative is None else negative,
        latent_image=torch.zeros_like(given),
        sigmas=torch.tensor(levels),
        callback=callback,
        disable_pbar=True,
        seed=0,
    )
    return samples.transpose(1, 2)


def by_hand(model, encoding: Encoding, scale: float = 1.0, levels: tuple[float, ...] = SHIFT_3) -> Tensor:
    """Return the same latents from the core's own loop, with no ComfyUI in between."""
    rows = tuple(i % encoding.n_plans for i in range(BATCH))
    job = Job(rows, noise(), levels, Guidance("cfg", scale))
    return generate_by_core(model.model.diffusion_model, encoding, model.model.silence, job)


def make(model, positive: list, n_frames: int = FRAMES, latent_in: dict | None = None, **given: object) -> Tensor:
    """Return latents [B, T, 64] of our whole sampler node."""
    empty = latent(torch.zeros(1, n_frames, CHANNELS), ())
    request = Request(**{"seed": 7, "n_steps": 2, "guidance": 1.0, **given})
    return generate(model, positive, latent_in or empty, request).latent["samples"].transpose(1, 2)


def assert_same(ours: Tensor, theirs: Tensor, max_error: float = 1e-4) -> None:
    """Fail unless two results are one up to the order of sums, which kernels choose by the batch size."""
    error = (ours - theirs).abs().max().item()
    cosine = torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).item()
    assert cosine >= 0.99999, f"cosine {cosine:.7f}, max error {error:.1e}"
    assert error <= max_error, f"max error {error:.1e}, cosine {cosine:.7f}"


def assert_different(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() > 1e-2


# Under core's sampler.


@pytest.mark.parametrize("which", ["2b_turbo", "xl_turbo"])
@pytest.mark.parametrize("encoding", [song(), song(codes=two_plans())], ids=["text", "codes"])
def test_core_euler_equals_our_loop(load, which: str, encoding: Encoding) -> None:
    model = load(which)
    assert_same(under_core(model, conditioning(encoding)), by_hand(model, encoding))


@pytest.mark.parametrize("encoding", [song(), song(codes=two_plans())], ids=["text", "codes"])
def test_core_guidance_with_a_zeroed_condition_is_plain_guidance_against_the_null_condition(base, encoding) -> None:
    assert_same(under_core(base, conditioning(encoding), 5.0, levels=TEN), by_hand(base, encoding, 5.0, TEN))


def test_a_zeroed_condition_keeps_the_codes_it_came_with(base) -> None:
    guided = under_core(base, conditioning(song(codes=two_plans())), 5.0)
    without = under_core(base, conditioning(song(codes=two_plans())), 5.0, zeroed(conditioning(song())))
    assert_different(guided, without)


def test_conditions_of_different_length_are_not_batched_but_both_count(base) -> None:
    other = song(lyric=whole(z("longer", 1, 33, 48)))
    both = under_core(base, conditioning(song()), 3.0, conditioning(other))
    one, two = (under_core(base, conditioning(each)) for each in (song(), other))
    assert_different(both, one)
    assert_different(both, two)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_codes_let_go_at_the_same_step_under_core(turbo, strength: float) -> None:
    encoding = song(codes=two_plans(), task=text2music(strength))
    assert_same(under_core(turbo, conditioning(encoding)), by_hand(turbo, encoding))


@pytest.mark.parametrize("n_frames", [1, 2, 61, 128, 301])
def test_any_number_of_frames_comes_back(turbo, n_frames: int) -> None:
    samples = under_core(turbo, conditioning(song()), given=noise(1, n_frames), levels=(1.0, 0.0))
    assert samples.shape == (1, n_frames, CHANNELS)
    assert torch.isfinite(samples).all()


@functools.cache
def lora() -> dict[str, Tensor]:
    """A LoRA of rank 4 on every attention of the decoder, in PEFT's naming."""
    made = {}
    for name, weight in golden_models.weights("2b").items():
        if name.startswith("decoder.layers.") and name.endswith("_proj.weight") and "attn" in name:
            stem = "base_model.model." + name.removeprefix("decoder.").removesuffix(".weight")
            made[f"{stem}.lora_A.weight"] = 0.3 * z(f"{name}.A", 4, weight.shape[1])
            made[f"{stem}.lora_B.weight"] = 0.3 * z(f"{name}.B", weight.shape[0], 4)
    return made


@pytest.fixture
def lora_name() -> Iterator[str]:
    path = Path(folder_paths.get_folder_paths("loras")[0]) / "voice.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora(), path)
    yield path.name
    path.unlink()


def test_a_lora_off_on_and_off_again_gives_the_same_another_and_the_same(turbo, lora_name: str, caplog) -> None:
    positive = conditioning(song(codes=two_plans()))
    patched = core_nodes.LoraLoaderModelOnly().load_lora_model_only(turbo, lora_name, 1.0)[0]
    off, on, off_again, on_again = (under_core(each, positive) for each in (turbo, patched, turbo, patched))
    assert "lora key not loaded" not in caplog.text
    assert_different(on, off)
    assert torch.equal(off, off_again)
    assert torch.equal(on, on_again)


def test_a_lora_acts_on_our_sampler_as_its_weights_added_by_hand(turbo, lora_name: str) -> None:
    patched = core_nodes.LoraLoaderModelOnly().load_lora_model_only(turbo, lora_name, 0.5)[0]
    merged = golden_models.AceStep(golden_models.config("2b")).eval()
    merged.load_state_dict(golden_models.weights("2b"))
    for name, part in lora().items():
        if name.endswith("lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            weight = merged.get_parameter(stem.replace("base_model.model.", "decoder.") + ".weight")
            weight += 0.5 * lora()[f"{stem}.lora_B.weight"] @ part
    x = noise()
    expected = generate_by_core(merged, song(), turbo.model.silence, Job((0, 0), x, SHIFT_3))
    assert_same(ours(patched, song(), x), expected)


# Under our own.


def ours(
    model,
    encoding: Encoding,
    x: Tensor,
    levels: tuple[float, ...] = SHIFT_3,
    guidance: Guidance | None = None,
    settings: SamplerSettings | None = None,
    **more: object,
) -> Tensor:
    """Return latents of our guider, from noise that is given."""
    rows = tuple(i % encoding.n_plans for i in range(len(x)))
    job = Job(rows, x, levels, guidance or Guidance(), settings or SamplerSettings(), **more)
    return run(
        model, Prompt.of(conditioning(encoding), x.shape[1]), job, seed=0, shift=3.0, on_step=lambda index: None
    )[0]


def golden_song(**given: object) -> Encoding:
    """The two golden items, as two plans."""
    return song(
        text=whole(z("gen.text", BATCH, 7, 48)),
        text_to_music=whole(z("gen.text_t2m", BATCH, 7, 48)),
        lyric=whole(z("gen.lyric", BATCH, 20, 48)),
        **given,
    )


SOURCE = z("gen.source", BATCH, FRAMES, CHANNELS)
REGION = torch.zeros(1, FRAMES)
REGION[:, 20:40] = 1
COVER = golden_song(task=cover(Source(SOURCE)))
HALF_COVER = golden_song(task=cover(Source(SOURCE), strength=0.5))
OFFICIAL_TIMESTEPS = (0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085, 0)
GOLDEN_TURBO = {
    "t2m_shift3": {},
    "t2m_shift1_steps5": {"levels": schedule(5, 1.0)},
    "heun": {"settings": SamplerSettings("heun")},
    "repaint_explicit": {"encoding": golden_song(task=repaint(Source(SOURCE), REGION, keep=None))},
    "repaint_injected": {
        "encoding": golden_song(task=repaint(Source(SOURCE), REGION)),
        "preserve": Preserve(SOURCE, REGION.expand(BATCH, -1), Keep(0.5, 10, 0.0)),
    },
    "extract_source": {"encoding": golden_song(task=cover(Source(SOURCE), hints=False))},
    "timesteps": {"levels": custom_schedule(OFFICIAL_TIMESTEPS, turbo=True)},
    "cover": {"encoding": COVER},
    "cover_strength_half": {"encoding": HALF_COVER},
    "cover_noise_0.4": {"encoding": COVER, "levels": start_at(SHIFT_3, 0.6), "start": SOURCE},
    "norm_clamp_ema": {"settings": SamplerSettings(norm_limit=2.0, ema=0.1)},
    "dcw_double": {"settings": SamplerSettings(dcw=Dcw("double", 0.05, 0.02))},
}
GOLDEN_BASE = {
    "apg": {"levels": TEN, "guidance": Guidance("apg", 7)},
    "apg_shift3_interval": {"levels": schedule(10, 3.0), "guidance": Guidance("apg", 5, (0.2, 0.8))},
    "adg": {"levels": TEN, "guidance": Guidance("adg", 5)},
    "no_guidance": {"levels": TEN},
    "cover_strength_half_apg": {"encoding": HALF_COVER, "levels": TEN, "guidance": Guidance("apg", 7)},
    "heun_apg": {
        "levels": TEN,
        "guidance": Guidance("apg", 7),
        "settings": SamplerSettings("heun", heun_last=True),
    },
}


@pytest.mark.parametrize("size", ["2b", "xl"])
@pytest.mark.parametrize(
    ("variant", "name"), [("turbo", name) for name in GOLDEN_TURBO] + [("base", name) for name in GOLDEN_BASE]
)
def test_a_generation_through_comfyui_equals_the_official_one(load, size: str, variant: str, name: str) -> None:
    case = {"encoding": golden_song(), **(GOLDEN_TURBO | GOLDEN_BASE)[name]}
    found = ours(load(f"{size}_{variant}"), x=z(f"gen.{name}.noise", BATCH, FRAMES, CHANNELS), **case)
    assert_close(found, golden()[f"gen.{size}_{variant}.{name}"], WHOLE_GENERATION)


def test_every_level_is_embedded_once_before_the_first_step(turbo) -> None:
    embedded: list[list[float]] = []
    embedding = turbo.model.diffusion_model.decoder.time_embed
    watch = embedding.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0].tolist()))
    ours(turbo, song(), noise())
    watch.remove()
    assert embedded == [pytest.approx(SHIFT_3[:-1])]


def test_a_model_of_another_loader_is_refused_with_the_name_of_ours() -> None:
    cpu = torch.device("cpu")
    foreign = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), cpu, cpu)
    with pytest.raises(ValueError, match=r"this MODEL is a Linear from another loader; .*\(AceStepLoadModel\)"):
        make(foreign, conditioning(song()))


# Takes.


@pytest.mark.parametrize("codes", [AudioCodes(), two_plans()], ids=["text", "codes"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
def test_take_3_of_seed_s_is_the_only_take_of_seed_s_plus_2(base, codes: AudioCodes, guidance_scale: float) -> None:
    n_plans, its_plan = max(1, codes.n_plans), AudioCodes(codes.sequences[-1:])
    four = make(base, conditioning(song(codes=codes)), takes_per_plan=4 // n_plans, guidance=guidance_scale)
    alone = make(base, conditioning(song(codes=its_plan)), seed=7 + 2, guidance=guidance_scale)
    assert_same(four[2], alone[0])


def test_listed_seeds_stand_for_the_takes_in_order(turbo) -> None:
    positive = conditioning(song())
    listed = make(turbo, positive, seeds=(9, 3), takes_per_plan=2)
    for take, seed in zip(listed, (9, 3), strict=True):
        assert_same(take, make(turbo, positive, seed=seed)[0])


def test_a_latent_says_which_seed_and_plan_each_take_is(turbo) -> None:
    made = generate(
        turbo,
        conditioning(song(codes=two_plans())),
        latent(torch.zeros(1, FRAMES, CHANNELS), ()),
        Request(seed=5, takes_per_plan=2, n_steps=3),
    )
    assert [(take.seed, take.plan, take.n_steps) for take in latent_takes(made.latent)] == [
        (5, 0, 3),
        (6, 0, 3),
        (7, 1, 3),
        (8, 1, 3),
    ]
    assert made.summary == "3 steps, shift 3, no guidance, euler, seed 5, 6, 7, 8"


@pytest.mark.parametrize("n_at_once", [1, 2, 3])
def test_takes_in_chunks_are_the_takes_at_once(turbo, monkeypatch, n_at_once: int) -> None:
    positive = conditioning(song(codes=two_plans()))
    whole_batch = make(turbo, positive, takes_per_plan=2)
    room = n_at_once * turbo.model.memory_required([1, CHANNELS, FRAMES], {ACESTEP_KEY: [[1, 28]]})
    monkeypatch.setattr(generating.memory, "room_beside", lambda patcher: room)
    assert_same(make(turbo, positive, takes_per_plan=2), whole_batch)


@pytest.mark.parametrize(("rooms", "n_takes", "size"), [(0, 4, 1), (0.9, 4, 1), (2.5, 4, 2), (4, 4, 4), (99, 3, 3)])
def test_as_many_takes_run_at_once_as_there_is_room_for_and_never_none(
    turbo, monkeypatch, rooms: float, n_takes: int, size: int
) -> None:
    one = turbo.model.memory_required([1, CHANNELS, FRAMES], {ACESTEP_KEY: [[1, 28]]})
    monkeypatch.setattr(generating.memory, "room_beside", lambda patcher: rooms * one)
    sizes = []
    monkeypatch.setattr(
        generating,
        "run",
        lambda patcher, prompt, job, **_more: sizes.append(len(job.rows)) or (job.noise, networks.Sampling()),
    )
    make(turbo, conditioning(song()), takes_per_plan=n_takes)
    assert sizes[0] == size
    assert sum(sizes) == n_takes


def test_sde_is_seeded_take_by_take(turbo) -> None:
    positive, options = conditioning(song()), Options(settings=SamplerSettings("sde"))
    both = make(turbo, positive, options=options, takes_per_plan=2, n_steps=4)
    assert_same(both[1], make(turbo, positive, options=options, seed=8, n_steps=4)[0])
    assert_different(both[0], both[1])


def test_a_noise_mask_keeps_the_frames_outside_it(turbo) -> None:
    source = z("source", 1, FRAMES, CHANNELS)
    mask = torch.zeros(1, 1, FRAMES)
    mask[..., 20:40] = 1
    kept = make(turbo, conditioning(song()), latent_in={**latent(source, ()), "noise_mask": mask}, n_steps=4)
    far = torch.ones(FRAMES, dtype=torch.bool)
    far[20 - NOISE_MASK.crossfade_frames : 40 + NOISE_MASK.crossfade_frames] = False
    assert torch.equal(kept[:, far], source[:, far])
    assert_different(kept[:, 20:40], source[:, 20:40])


def test_a_latent_that_nothing_uses_is_mentioned(turbo) -> None:
    given = latent(z("source", 1, FRAMES, CHANNELS), ())
    made = generate(turbo, conditioning(song()), given, Request(n_steps=1))
    assert made.warnings == ("the latent is not empty, but nothing here uses it: only its length counts",)


# What core's own conditioning means.


def core_conditioning(**extras: object) -> list:
    """What TextEncodeAceStepAudio1.5 makes: text states, and the rest as plain values."""
    texts = {"pooled_output": None, "conditioning_lyrics": z("gen.lyric", BATCH, 20, 48)[:1]}
    return [[z("gen.text", BATCH, 7, 48)[:1], {**texts, **extras}]]


REFERENCE = z("reference", 1, 80, CHANNELS)
CORE_MEANS = {
    "text": ({}, {}),
    "codes": ({"audio_codes": [list(two_plans().sequences[0])]}, {"codes": AudioCodes(two_plans().sequences[:1])}),
    "reference": (
        {"reference_audio_timbre_latents": [REFERENCE.transpose(1, 2)]},
        {"timbre": REFERENCE, "task": cover(Source(REFERENCE))},
    ),
    "reference over codes": (
        {
            "audio_codes": [list(two_plans().sequences[0])],
            "reference_audio_timbre_latents": [REFERENCE.transpose(1, 2)],
        },
        {"timbre": REFERENCE, "task": cover(Source(REFERENCE))},
    ),
}


@pytest.mark.parametrize("name", CORE_MEANS)
def test_conditioning_of_core_means_what_core_means_by_it(base, name: str) -> None:
    said, meant = CORE_MEANS[name]
    assert_same(under_core(base, core_conditioning(**said), 4.0), by_hand(base, song(**meant), 4.0))


def test_conditioning_of_core_works_in_our_sampler(turbo) -> None:
    assert_same(make(turbo, core_conditioning()), make(turbo, conditioning(song())))


def test_conditioning_of_another_model_is_refused(turbo) -> None:
    with pytest.raises(ValueError, match=r"this CONDITIONING is not ACE-Step 1\.5's; make it with"):
        under_core(turbo, [[z("gen.text", BATCH, 7, 48), {"pooled_output": None}]])


# Nothing is left behind.


def alive() -> list[Run]:
    """Return the runs among all objects that are not frozen."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Run]


@pytest.fixture
def _only_new_objects() -> Iterator[None]:
    """Freeze what there is, which is a million objects, once there is no run among them."""
    assert alive() == []
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize("ending", [None, RuntimeError, InterruptProcessingException])
def test_what_a_run_keeps_is_gone_with_it_however_it_ends(turbo, ending: type[BaseException] | None) -> None:
    guider = comfy.samplers.CFGGuider(turbo)
    guider.set_conds(conditioning(song()), [])
    during = []

    def callback(step: int, *_: object) -> None:
        during.append(len(alive()))
        if ending is not None and step == 1:
            raise ending

    x = noise().transpose(1, 2).contiguous()
    sampler = comfy.samplers.sampler_object("euler")
    with suppress(RuntimeError, InterruptProcessingException):
        guider.sample(
            x, torch.zeros_like(x), sampler, torch.tensor(SHIFT_3), callback=callback, disable_pbar=True, seed=0
        )
    assert during == [1] * (8 if ending is None else 2)
    for options in (guider.model_options, turbo.model_options):
        assert networks.SAMPLING_KEY not in options.get("transformer_options", {})
    assert alive() == []


def test_two_copies_of_a_model_do_not_share_a_run(turbo) -> None:
    copy = turbo.clone()
    first = under_core(turbo, conditioning(song()))
    under_core(copy, conditioning(song(codes=two_plans())))
    assert torch.equal(under_core(turbo, conditioning(song())), first)


# Memory and number formats.


def test_memory_grows_in_a_straight_line_with_frames_and_batch(turbo) -> None:
    def needed(n_items: int, n_frames: int) -> float:
        return turbo.model.memory_required([n_items, CHANNELS, n_frames])

    steps = [needed(1, 2_000 * (i + 1)) - needed(1, 2_000 * i) for i in range(1, 7)]
    assert steps == [steps[0]] * 6
    assert needed(8, 15_000) == 8 * needed(1, 15_000)


def test_memory_grows_with_the_condition(turbo) -> None:
    short, long = (turbo.model.memory_required([1, CHANNELS, 500], {ACESTEP_KEY: [[1, n]]}) for n in (10, 1_000))
    assert long > short


@pytest.mark.parametrize(
    ("weight_dtype", "kept_as", "cosine"),
    [
        ("bf16", torch.bfloat16, 0.99),
        ("fp8_e4m3fn", torch.float8_e4m3fn, 0.8),
        ("fp8_e5m2", torch.float8_e5m2, 0.8),
        ("auto", torch.float32, 0.999999),
    ],
)
def test_narrow_weights_stay_narrow_and_make_nearly_the_same(
    load, weight_dtype: str, kept_as: torch.dtype, cosine: float
) -> None:
    model = load("2b_turbo", weight_dtype)
    assert model.model.diffusion_model.decoder.layers[0].self_attn.q_proj.weight.dtype == kept_as
    samples = make(model, conditioning(song()))
    exact = make(load("2b_turbo"), conditioning(song()))
    assert torch.isfinite(samples).all()
    assert torch.cosine_similarity(samples.flatten(), exact.flatten(), dim=0) > cosine


def test_a_model_can_be_made_again_from_what_its_patcher_remembers(turbo) -> None:
    rebuild, arguments = turbo.cached_patcher_init
    again = rebuild(*arguments, disable_dynamic=True)
    assert torch.equal(make(again, conditioning(song())), make(turbo, conditioning(song())))
