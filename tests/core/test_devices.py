"""The whole core as it runs on a graphics card, on one that is pretended: nothing meets what lies elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.audio.level import fade, normalize_peak
from acestep_pack.acestep_core.lora.change import Change, Full, Hadamard, Kronecker, LowRank, merged
from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.models.layers import AttentionShape, Build, TorchOps, alternating
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig
from acestep_pack.acestep_core.pipeline.condition import Condition, Encoding, condition
from acestep_pack.acestep_core.pipeline.guidance import METHODS, Guidance, Guide
from acestep_pack.acestep_core.pipeline.morph import Morph, MorphGuide, morph
from acestep_pack.acestep_core.pipeline.preserve import Keep, Preserve
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.pipeline.sample import SOLVERS, Evaluation, SamplerSettings, sample
from acestep_pack.acestep_core.pipeline.splice import splice
from acestep_pack.acestep_core.pipeline.tasks import (
    RULES,
    TEXT2MUSIC,
    Source,
    Task,
    complete,
    cover,
    extend,
    extract,
    lego,
    repaint,
    stitch,
)
from acestep_pack.acestep_core.pipeline.wavelet import MODES, Dcw
from acestep_pack.acestep_core.planner.likelihood import likelihoods
from acestep_pack.acestep_core.scoring.attention import LyricHeads, lyric_attention
from acestep_pack.acestep_core.types import AudioCodes
from card import CARD, CPU, Card, device_of, put

pytestmark = pytest.mark.usefixtures("inference_mode")

BF16 = torch.bfloat16
SHAPE = AttentionShape(width=16, mlp_width=32, n_heads=4, n_kv_heads=2, head_dim=4, window=8)
WIDE = AttentionShape(width=24, mlp_width=32, n_heads=4, n_kv_heads=2, head_dim=6, window=8)
N_FRAMES, TEXT_WIDTH = 131, 12
SILENCE = torch.linspace(-1, 1, 40 * 64).view(1, 40, 64)  # kept by the host, on the CPU
CODES = AudioCodes(((1, 63_999, 5) * 9, (7,) * 20))
LEVELS = (1.0, 0.6, 0.3, 0.0)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: torch.nn.Module) -> torch.nn.Module:
    for seed, weight in enumerate(module.parameters()):
        weight.data = (numbers(seed, *weight.shape) * weight.shape[-1] ** -0.5).to(weight.dtype)
    return module.eval().requires_grad_(False)


def built(size: str) -> AceStep:
    """Return a model in bf16, but for the quantizer, which is float32 always."""
    config = AceStepConfig(WIDE if size == "xl" else SHAPE, SHAPE, alternating(3), TEXT_WIDTH, 2, 2, 2)
    return filled(AceStep(config, Build(dtype=BF16)))


@functools.cache
def model(size: str = "2b") -> AceStep:
    """Return it on the CPU. Shared between tests, as the one on the card: leave them as you found them."""
    return built(size)


@functools.cache
def on_card(size: str = "2b", bare_parameters: bool = True) -> AceStep:
    """Return the same model on the card; without its bare parameters, as the host leaves them where memory is short."""
    made = put(built(size))
    if not bare_parameters:
        for name, parameter in made.named_parameters():
            if name.endswith(("special_token", "special_tokens", "scale_shift_table", "null_condition_emb")):
                parameter.pretended = CPU
    return made


def same(found: Tensor, expected: Tensor) -> None:
    """Found on the card, and the same numbers as on the CPU."""
    assert device_of(found) == CARD
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.cpu(), expected, atol=0, rtol=0)


# The pretended card itself.


def test_the_card_keeps_what_cuda_keeps_apart():
    here, there = torch.ones(3), put(torch.ones(3))
    with Card():
        assert (there.device, here.device, there.to(here).device) == (CARD, CPU, CPU)
        assert (here.to("cuda").device, here.device) == (CARD, CPU)
        assert torch.arange(3, device=there.device).device == there[None].mT.device == CARD
        assert (there * torch.tensor(2.0)).device == there[torch.tensor([0, 2])].device == CARD
        there[1:] = here[1:]
        for wrong in (
            lambda: here + there,
            lambda: torch.cat((here, there)),
            lambda: torch.equal(here, there),
            lambda: torch.where(there > 0, here, there),
            lambda: here[there > 0],
            lambda: there.__setitem__(torch.tensor([0]), here[:1]),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(TypeError):
            there.numpy()


# From an encoding to latents.


def tokens(seed: int, n_items: int, n_tokens: int) -> Tokens:
    """States of texts of different length."""
    attention_mask = torch.arange(n_tokens) < n_tokens - torch.arange(n_items)[:, None]
    return Tokens(numbers(seed, n_items, n_tokens, TEXT_WIDTH), attention_mask)


def recording(at: Callable[[Tensor], Tensor], n_items: int = 1) -> Source:
    return Source(at(numbers(1, n_items, N_FRAMES, 64)), waveform=numbers(2, n_items, 2, N_FRAMES * 1920))


def hole() -> Tensor:
    """A mask as a task holds it, which is on the CPU whatever the host does."""
    mask = torch.zeros(1, N_FRAMES)
    mask[:, 40:60] = 1
    mask[:, 60:70] = 0.5
    return mask


TASKS: dict[str, Callable[[Source], Task]] = {
    "text2music": lambda source: TEXT2MUSIC,
    "cover": lambda source: cover(source, noise_strength=0.3),
    "cover-nofsq": lambda source: cover(source, hints=False),
    "repaint": lambda source: repaint(source, hole()),
    "extend": lambda source: extend(source, 1.0, 2.0),
    "stitch": lambda source: stitch(source, source, 1.0, 0.2),
    "lego": lambda source: lego(source, "drums", hole()),
    "extract": lambda source: extract(source, ("drums", "bass")),
    "complete": lambda source: complete(source, ("drums",)),
}


def same_place(value):
    return value


def encoding(task: Task, codes: AudioCodes, at: Callable) -> Encoding:
    """Return an encoding of two plans, with recordings to sound like."""
    text, lyric, timbre = tokens(3, 2, 9), tokens(4, 1, 14), numbers(5, 2, 750, 64)
    return Encoding(at(text), at(text), at(lyric), codes=codes, timbre=at(timbre), task=task)


def velocity_of(network: AceStep, silence: Tensor, given: Encoding, x: Tensor) -> Tensor:
    """Return a velocity of two takes, with their text and without, in one batch."""
    run = Run(network, silence)
    run.expect(LEVELS[:-1])
    return run.velocity(x.repeat(2, 1, 1), 0.6, [Branch(given, (1, 0)), Branch(given, (1, 0), null=True)])


@pytest.mark.parametrize("inputs", [same_place, put], ids=["inputs on the CPU", "inputs on the card"])
@pytest.mark.parametrize("name", [*RULES, "text2music with codes", "repaint with codes"])
def test_every_task_reaches_the_model_on_its_device(name: str, inputs: Callable):
    codes = CODES if name.endswith("codes") else AudioCodes()
    task_of = TASKS[name.removesuffix(" with codes")]
    task = task_of(recording(inputs))
    given = encoding(task, codes, inputs)
    plain = encoding(task_of(recording(same_place)), codes, same_place)
    n_frames = task.window_frames or N_FRAMES
    x = numbers(6, 2, n_frames, 64).to(BF16)
    expected = velocity_of(model(), SILENCE, plain, x)
    with Card():
        same(velocity_of(on_card(), SILENCE, given, put(x)), expected)
        dropped = condition(on_card(), given, put(SILENCE.to(BF16)), n_frames, plain=True)
    assert device_of(dropped.context) == device_of(dropped.tokens.attention_mask) == CARD
    assert device_of(given.text.states) == device_of(given.timbre) == (CARD if inputs is put else CPU)


@pytest.mark.parametrize("size", ["2b", "xl"])
def test_bare_parameters_may_lie_elsewhere(size: str):
    x = numbers(6, 2, N_FRAMES, 64).to(BF16)
    given = encoding(cover(recording(same_place)), AudioCodes(), same_place)
    expected = velocity_of(model(size), SILENCE, given, x)
    with Card():
        same(velocity_of(on_card(size, bare_parameters=False), SILENCE, given, put(x)), expected)


def test_latents_are_read_as_codes_and_back_on_the_card():
    latents = numbers(1, 2, N_FRAMES, 64).to(BF16)
    codes = model().tokenize(latents, SILENCE)
    with Card():
        found = on_card().tokenize(put(latents), SILENCE)
        same(found, codes)
        same(on_card().detokenize(found, BF16), model().detokenize(codes, BF16))


class NeverEmpty(TorchOps):
    """Operations as CUDA's are, whose attention takes no empty batch."""

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not q.shape[0]:
            raise RuntimeError("batch size must be positive")
        return TorchOps.attention(q, k, v, mask)


def test_a_plan_without_codes_beside_others_needs_no_attention():
    network = filled(AceStep(AceStepConfig(SHAPE, SHAPE, alternating(3), TEXT_WIDTH, 2, 2, 2), Build(NeverEmpty)))
    given = encoding(TEXT2MUSIC, AudioCodes(((), (1, 2, 3))), same_place)
    made = condition(network, given, SILENCE, N_FRAMES)
    assert torch.equal(made.context[0, :40, :64], SILENCE[0])
    assert not torch.equal(made.context[1, :15, :64], SILENCE[0, :15])


# The loop around the model, in float32.


def preserve(at: Callable[[Tensor], Tensor]) -> Preserve:
    return Preserve(at(numbers(1, 2, N_FRAMES, 64)), at(hole().expand(2, -1)), Keep(0.5, 12, 0.0))


def drawn_noise(at: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(9)
    return lambda: at(torch.randn(2, N_FRAMES, 64, generator=generator))


def guided(guidance: Guidance, for_morph: bool) -> Callable[[Tensor, Evaluation], Tensor]:
    """Return a velocity that is made of two, as the host's guider does it."""
    guide, morph_guide = Guide(guidance), MorphGuide(guidance)

    def velocity(x: Tensor, at: Evaluation) -> Tensor:
        cond, uncond = x * (0.5 + at.origin), x.sin()
        return (morph_guide if for_morph else guide)(cond, uncond, x, at)

    return velocity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_stays_on_the_card(solver: str, method: str):
    def sampled(at: Callable[[Tensor], Tensor], dcw: str) -> Tensor:
        settings = SamplerSettings(solver, 2.0, 0.2, Dcw(dcw), heun_last=True, latent_shift=-0.04)
        velocity = guided(Guidance(method, 3.0), for_morph=False)
        more = {"start": at(numbers(7, 2, N_FRAMES, 64)), "preserve": preserve(at), "fresh_noise": drawn_noise(at)}
        return sample(velocity, at(numbers(8, 2, N_FRAMES, 64)), LEVELS, settings, **more)

    for dcw in MODES:
        expected = sampled(same_place, dcw)
        with Card():
            same(sampled(put, dcw), expected)


@pytest.mark.parametrize("window", [(0.0, 1.0), (0.4, 0.7)])
def test_a_morph_stays_on_the_card(window: tuple[float, float]):
    def morphed(at: Callable[[Tensor], Tensor]) -> Tensor:
        settings, change = SamplerSettings(norm_limit=2.0, ema=0.2), Morph(*window, n_draws=2)
        song, kept, velocity = at(numbers(1, 2, N_FRAMES, 64)), preserve(at), guided(Guidance("apg", 3.0), True)
        return morph(velocity, song, LEVELS, change, settings, drawn_noise(at), preserve=kept)

    expected = morphed(same_place)
    with Card():
        same(morphed(put), expected)


@pytest.mark.parametrize("inputs", [same_place, put], ids=["inputs on the CPU", "inputs on the card"])
@pytest.mark.parametrize("name", RULES)
def test_takes_are_put_back_among_their_sources_wherever_they_lie(name: str, inputs: Callable):
    """The host hands takes over on the CPU; a foreign sampler may leave them on the card."""
    task = TASKS[name](recording(inputs))
    takes, rows = numbers(3, 2, task.window_frames, 64), torch.tensor([1, 0])
    expected = TASKS[name](recording(same_place)).assemble(takes, rows)
    with Card():
        same(task.assemble(put(takes), rows), expected)
        back = task.assemble(takes, rows)
        assert device_of(back) == CPU
        seen = task.source_in_window(task.window_frames, SILENCE)
        assert device_of(seen) == CPU
    torch.testing.assert_close(back, expected, atol=0, rtol=0)


# Sound.


def vae() -> Vae:
    return filled(Vae(VaeConfig(encoder_width=2, decoder_width=2), Build(dtype=BF16)))


def test_sound_is_encoded_on_the_card_and_decoded_to_the_host():
    on_card_vae = put(vae())
    for name, parameter in on_card_vae.named_parameters():
        if name.endswith(("alpha", "beta")):
            parameter.pretended = CPU
    audio = 0.1 * numbers(1, 2, 2, 9 * 1920 + 100)
    with Card():
        latents = on_card_vae.encode_tiled(audio, 4, device=CARD, dtype=BF16)
        assert device_of(latents) == CARD
        for tile_frames in (4, 512):
            heard = on_card_vae.decode_tiled(latents, tile_frames, out_device=CPU)
            assert device_of(heard) == CPU
            assert heard.shape == (2, 2, 9 * 1920)
        assert device_of(on_card_vae.decode(latents)) == CARD
        assert device_of(fade(normalize_peak(put(audio), -1.0), 0.1, 0.1)) == CARD


def test_what_is_decoded_on_the_card_is_set_into_recordings_on_the_host():
    task = repaint(recording(put), hole())
    with Card():
        audio = splice(put(numbers(1, N_FRAMES, 64)), task, 0, lambda x: x.new_ones(1, 2, x.shape[1] * 1920))
    assert device_of(audio) == CPU
    assert bool((audio[:, 45 * 1920 : 55 * 1920] == 1).all())


# Scores.


@pytest.mark.parametrize("inputs", [same_place, put], ids=["inputs on the CPU", "inputs on the card"])
def test_lyrics_are_heard_on_the_card_and_aligned_on_the_host(inputs: Callable):
    latents = numbers(1, 2, N_FRAMES, 64)
    given, heads = encoding(TEXT2MUSIC, CODES, same_place), LyricHeads(((0, 1), (2, 3)))

    def heard(network: AceStep, made: Condition, takes: Tensor) -> Tensor:
        return lyric_attention(network, made.tokens, made.context, takes, range(3, 9), 0.125, heads)

    expected = heard(model(), condition(model(), given, SILENCE.to(BF16), N_FRAMES), latents)
    with Card():
        made = condition(on_card(), given, put(SILENCE.to(BF16)), N_FRAMES)
        found = heard(on_card(), made, inputs(latents))
    assert device_of(found) == CPU
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("own_head", [False, True])
def test_answers_are_judged_on_the_card(own_head: bool):
    shape = AttentionShape(width=16, mlp_width=32, n_heads=4, n_kv_heads=2, head_dim=8, window=None)

    def planner() -> Qwen3:
        return filled(Qwen3(Qwen3Config(shape, 2, 9_000, own_head), Build(dtype=BF16)))

    question, answers = [5, 6, 7], [[8_999], [1, 2, 3], [4, 4]]
    expected = likelihoods(planner(), question, answers, BF16)
    with Card():
        assert likelihoods(put(planner()), question, answers, BF16, CARD) == expected


# Adapters.

CHANGES = {
    "lora": Change(LowRank(numbers(1, 8, 2), numbers(2, 2, 6))),
    "lora as trained in bf16": Change(LowRank(numbers(1, 8, 2).to(BF16), numbers(2, 2, 6).to(BF16)), 0.5),
    "dora": Change(LowRank(numbers(1, 8, 2), numbers(2, 2, 6)), 2.0, numbers(3, 8, 1).abs()),
    "dora by columns": Change(LowRank(numbers(1, 8, 2), numbers(2, 2, 6)), 2.0, numbers(3, 1, 6).abs()),
    "lokr": Change(Kronecker(numbers(1, 2, 3), numbers(2, 4, 2))),
    "loha": Change(Hadamard(numbers(1, 8, 2), numbers(2, 2, 6), numbers(3, 8, 2), numbers(4, 2, 6))),
    "whole": Change(Full(numbers(1, 8, 6))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_adapter_kept_by_the_host_is_merged_into_a_weight_on_the_card(name: str):
    weight, changes = numbers(9, 8, 6).to(BF16), [(0.7, CHANGES[name]), (-0.2, CHANGES["lora"])]
    expected = merged(weight, changes)
    with Card():
        same(merged(put(weight), changes), expected)
    assert device_of(weight) == CPU
