"""What is computed once is computed from what is in force: weights that hooks change, windows, areas, levels.

The reference is the core's own loop over networks whose weights were changed by hand, one for each set of weights.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import comfy.context_windows
import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from comfy_extras import nodes_context_windows, nodes_hooks
from torch import Tensor

import golden_models
import nodes as core_nodes
from acestep_pack.acestep_core.models.acestep import AceStep
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding, context_latents
from acestep_pack.acestep_core.pipeline.options import Retake
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.pipeline.takes import Request, noise_of
from acestep_pack.acestep_core.pipeline.tasks import Source, cover, text2music
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.host import network as networks
from acestep_pack.nodes.host.conditioning import conditioning_of
from acestep_pack.nodes.host.generate import generate
from acestep_pack.nodes.host.latents import Origins, latent
from golden_models import z

N_FRAMES, CHANNELS, N_STEPS, CFG = 130, 64, 4, 4.0
CODES = AudioCodes((tuple((613 * i) % 64_000 for i in range(26)),))
HOOKS = nodes_hooks.NODE_CLASS_MAPPINGS
# Parts of the network, by how a generation uses them.
PARTS = {
    "every step": "decoder.layers.0.self_attn.q_proj",
    "cross keys and values": "decoder.layers.1.cross_attn.k_proj",
    "step modulations": "decoder.time_embed.time_proj",
    "condition": "encoder.lyric_encoder.layers.0.self_attn.v_proj",
    "packed condition": "decoder.condition_embedder",
    "context of codes": "detokenizer.proj_out",
}


@pytest.fixture
def model(golden_model: Callable[[str], object]):
    return golden_model("base")


def whole(name: str, n_tokens: int) -> Tokens:
    return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))


def encoding(name: str = "one", **given: object) -> Encoding:
    text = whole(f"{name}.text", 7)
    fields = {"text": text, "text_to_music": text, "lyric": whole(f"{name}.lyric", 20), "codes": CODES}
    return Encoding(**{**fields, **given})


def song(**given: object) -> list:
    return conditioning_of(encoding(**given), Origins())


@functools.cache
def factors(part: str) -> tuple[Tensor, Tensor]:
    weight = golden_models.weights("2b")[f"{PARTS[part]}.weight"]
    return 0.5 * z(f"{part}.up", weight.shape[0], 4), 0.5 * z(f"{part}.down", 4, weight.shape[1])


@functools.cache
def network(part: str = "", strength: float = 1.0, other: str = "") -> AceStep:
    """The golden network, one weight of it or two changed by hand."""
    made = golden_models.AceStep(golden_models.config("2b")).eval()
    made.load_state_dict(golden_models.weights("2b"))
    for each in filter(None, (part, other)):
        up, down = factors(each)
        made.get_parameter(f"{PARTS[each]}.weight").add_(strength * up @ down)
    return made


def hook(part: str, strength: float = 1.0) -> comfy.hooks.HookGroup:
    up, down = factors(part)
    stem = f"diffusion_model.{PARTS[part]}"
    return comfy.hooks.create_hook_lora({f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}, strength, 0.0)


def ranged(conditioning: list, start: float, end: float, hooks: comfy.hooks.HookGroup | None = None) -> list:
    """A conditioning for a part of the steps, with hooks."""
    if hooks is not None:
        (conditioning,) = HOOKS["ConditioningSetProperties"]().set_properties(conditioning, 1.0, "default", hooks=hooks)
    return core_nodes.ConditioningSetTimestepRange().set_range(conditioning, start, end)[0]


def noise(seed: int = 5) -> Tensor:
    return noise_of([seed], [0], Retake(), N_FRAMES)()


def under_core(model, positive: list, negative: list, cfg: float, x: Tensor) -> Tensor:
    """Latents [1, T, 64] of core's sampler from noise x."""
    return comfy.samplers.sample(
        model, x.mT.contiguous(), positive, negative, cfg, model.load_device, comfy.samplers.ksampler("euler"),
        torch.tensor(LEVELS), model.model_options, torch.zeros_like(x).mT.contiguous(), disable_pbar=True, seed=5,
    ).mT  # fmt: skip


def under_ours(model, positive: list, guidance: float, x: Tensor) -> Tensor:
    request = Request(seed=5, n_steps=N_STEPS, shift=3.0, guidance=guidance)
    return generate(model, positive, latent(torch.zeros_like(x)), request).latent["samples"].mT


LEVELS = tuple(float(level) for level in (3 * t / (1 + 2 * t) for t in (1.0, 0.75, 0.5, 0.25, 0.0)))


def by_hand(
    x: Tensor, networks: Sequence[AceStep], silence: Tensor, cfg: float, null_of: AceStep | None = None
) -> Tensor:
    """Latents by Euler: networks[i] for step i, and null_of, if given, for what is without a prompt."""
    made_of = encoding()
    runs = {id(each): Run(each, silence) for each in (*networks, null_of) if each is not None}
    for (t, t_next), each in zip(pairwise(LEVELS), networks, strict=True):
        v = runs[id(each)].velocity(x, t, [Branch(made_of, (0,))])
        if cfg > 1:
            null = runs[id(null_of or each)].velocity(x, t, [Branch(made_of, (0,), null=True)])
            v = null + cfg * (v - null)
        x = x - (t - t_next) * v
    return x


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-3 * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_for_the_first_steps_acts_in_those_alone_whatever_it_changes(model, part: str) -> None:
    silence = model.model.silence
    positive = [*ranged(song(), 0.0, 0.45, hook(part)), *ranged(song(), 0.45, 1.0)]
    networks = [network(part), network(part), network(), network()]
    expected = by_hand(noise(), networks, silence, 1.0)
    for everywhere in ([network()] * 4, [network(part)] * 4):
        assert (by_hand(noise(), everywhere, silence, 1.0) - expected).abs().max() > 0.02
    assert_same(under_ours(model, positive, 1.0, noise()), expected)
    assert_same(under_core(model, positive, song(), 1.0, noise()), expected)


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_on_the_prompt_does_not_reach_the_side_without(model, part: str) -> None:
    (positive,) = HOOKS["ConditioningSetProperties"]().set_properties(song(), 1.0, "default", hooks=hook(part))
    (zeroed,) = core_nodes.ConditioningZeroOut().zero_out(song())
    expected = by_hand(noise(), [network(part)] * 4, model.model.silence, CFG, network())
    assert_same(under_core(model, positive, zeroed, CFG, noise()), expected)
    # And where both sides have it, it reaches both; so do our sampler's, which are of one conditioning.
    (zeroed,) = core_nodes.ConditioningZeroOut().zero_out(positive)
    both = by_hand(noise(), [network(part)] * 4, model.model.silence, CFG)
    assert_same(under_core(model, positive, zeroed, CFG, noise()), both)


def test_a_hook_whose_strength_changes_acts_with_each_strength_in_its_steps(model) -> None:
    keyframes = None
    for strength, start in ((1.0, 0.0), (0.5, 0.2), (0.0, 0.45), (1.5, 0.7)):
        (keyframes,) = HOOKS["CreateHookKeyframe"]().create_hook_keyframe(strength, start, keyframes)
    for part in ("cross keys and values", "condition", "step modulations"):
        (hooks,) = HOOKS["SetHookKeyframes"]().set_hook_keyframes(hook(part), keyframes)
        (positive,) = HOOKS["ConditioningSetProperties"]().set_properties(song(), 1.0, "default", hooks=hooks)
        networks = [network(part, strength) for strength in (1.0, 0.5, 0.0, 1.5)]
        expected = by_hand(noise(), networks, model.model.silence, 1.0)
        assert_same(under_ours(model, positive, 1.0, noise()), expected)
        assert_same(under_core(model, positive, song(), 1.0, noise()), expected)


def test_several_hooks_on_a_prompt_act_together(model) -> None:
    parts = ("cross keys and values", "condition")
    (hooks,) = HOOKS["CombineHooks2"]().combine_hooks(*map(hook, parts))
    (positive,) = HOOKS["ConditioningSetProperties"]().set_properties(song(), 1.0, "default", hooks=hooks)
    both = network(parts[0], 1.0, parts[1])
    expected = by_hand(noise(), [both] * 4, model.model.silence, 1.0)
    assert_same(under_ours(model, positive, 1.0, noise()), expected)
    assert_same(under_core(model, positive, song(), 1.0, noise()), expected)


def test_hooks_leave_nothing_behind(model) -> None:
    (positive,) = HOOKS["ConditioningSetProperties"]().set_properties(song(), 1.0, "default", hooks=hook("condition"))
    before = under_ours(model, song(), 1.0, noise())
    assert not torch.equal(under_ours(model, positive, 1.0, noise()), before)
    assert torch.equal(under_ours(model, song(), 1.0, noise()), before)


# Windows and areas.


def watched(model) -> tuple[object, list[tuple[Tensor, Tensor, Tensor]]]:
    """A MODEL, and what its forwards are given and give: latents, level and velocity."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    patcher = model.clone()

    def wrap(executor, x, timestep, *args, **kwargs):
        v = executor(x, timestep, *args, **kwargs)
        seen.append((x.mT, timestep, v.mT))
        return v

    patcher.add_wrapper_with_key("diffusion_model", "watch", wrap)
    return patcher, seen


def windowed(model, dim: int = 2, **given: object):
    settings = {"context_length": 50, "context_overlap": 10, "context_schedule": "standard_static", "dim": dim}
    settings |= {"context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "freenoise": False}
    settings |= {"cond_retain_index_list": "", "split_conds_to_windows": False, "causal_window_fix": False}
    return nodes_context_windows.ContextWindowsManualNode.execute(model, **{**settings, **given}).result[0]


TASKS = {"codes": {}, "cover": {"codes": AudioCodes(), "task": cover(Source(z("source", 1, N_FRAMES, CHANNELS)))}}


def velocity_of(x: Tensor, t: Tensor, made_of: Encoding, frames: Sequence[int], silence: Tensor) -> Tensor:
    """The velocity of some frames of a song, their context cut out of the whole song's by hand."""
    net = network()
    run = Run(net, silence)
    context = context_latents(net, made_of, silence, N_FRAMES)[:, list(frames)]
    run._context = lambda *_given: context
    return run.velocity(x, float(t[0]), [Branch(made_of, (0,))])


@pytest.mark.parametrize("sampler", ["ours", "core's"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_context_window_gets_the_codes_and_sources_of_its_own_frames(model, kind: str, sampler: str) -> None:
    patcher, seen = watched(windowed(model))
    made_of, positive = encoding(**TASKS[kind]), song(**TASKS[kind])
    if sampler == "ours":
        under_ours(patcher, positive, 1.0, noise())
    else:
        under_core(patcher, positive, positive, 1.0, noise())
    windows = [range(0, 50), range(40, 90), range(80, 130)]
    assert len(seen) == len(windows) * N_STEPS
    for place, (x, t, v) in enumerate(seen):
        expected = velocity_of(x, t, made_of, windows[place % len(windows)], model.model.silence)
        torch.testing.assert_close(v, expected, atol=1e-4, rtol=0)


def test_a_context_window_sees_the_frame_before_it_where_core_adds_that(model) -> None:
    patcher, seen = watched(windowed(model, causal_window_fix=True))
    under_ours(patcher, song(), 1.0, noise())
    for place, frames in enumerate((range(0, 50), range(39, 90), range(79, 130))):
        x, t, v = seen[place]
        torch.testing.assert_close(v, velocity_of(x, t, encoding(), frames, model.model.silence), atol=1e-4, rtol=0)


def test_takes_go_through_context_windows_one_by_one(model) -> None:
    patcher, empty = windowed(model), latent(torch.zeros(1, N_FRAMES, CHANNELS))
    request = Request(seed=5, takes_per_plan=2, n_steps=2, shift=3.0, guidance=1.0)
    both = generate(patcher, song(), empty, request)
    assert both.summary == "2 steps, shift 3, no guidance, euler, 1 take at a time, seed 5, 6"
    second = generate(patcher, song(), empty, replace(request, seed=6, takes_per_plan=1))
    assert torch.equal(both.latent["samples"][1:], second.latent["samples"])
    with pytest.raises(ValueError, match="core's context windows take one item of a batch at a time; make one take"):
        under_core(patcher, song(), song(), 1.0, noise().repeat(2, 1, 1))


def test_a_context_window_may_keep_some_frames_of_the_condition(model) -> None:
    patcher, seen = watched(windowed(model, cond_retain_index_list="0, 1"))
    under_ours(patcher, song(), 1.0, noise())
    x, t, v = seen[1]
    expected = velocity_of(x, t, encoding(), [0, 1, *range(42, 90)], model.model.silence)
    torch.testing.assert_close(v, expected, atol=1e-4, rtol=0)


def test_context_windows_over_the_batch_keep_each_take_its_plan(model) -> None:
    codes = AudioCodes(tuple(tuple((plan * 7919 + 613 * i) % 64_000 for i in range(26)) for plan in range(4)))
    request = Request(seed=5, n_steps=2, shift=3.0, guidance=1.0)
    empty = latent(torch.zeros(4, N_FRAMES, CHANNELS))
    whole_batch = generate(model, song(codes=codes), empty, request).latent["samples"]
    patcher = windowed(model, dim=0, context_length=2, context_overlap=0)
    in_windows = generate(patcher, song(codes=codes), empty, request).latent["samples"]
    torch.testing.assert_close(in_windows, whole_batch, atol=1e-3, rtol=0)


def test_context_windows_over_channels_are_refused(model) -> None:
    with pytest.raises(ValueError, match='context windows of an ACE-Step model go over time: set "dim" to 2'):
        under_ours(windowed(model, dim=1), song(), 1.0, noise())


@pytest.mark.parametrize("kind", TASKS)
def test_a_condition_for_an_area_gets_the_codes_and_sources_of_its_frames(model, kind: str) -> None:
    patcher, seen = watched(model)
    made_of, everywhere = encoding(**TASKS[kind]), song(**TASKS[kind])
    (some,) = core_nodes.ConditioningSetAreaPercentage().append(everywhere, 1.0, 0.4, 0.0, 0.2, 1.0)
    under_core(patcher, [*everywhere, *some], everywhere, 1.0, noise())
    areas = [(x, t, v) for x, t, v in seen if x.shape[1] != N_FRAMES]
    assert len(areas) == N_STEPS
    for x, t, v in areas:
        expected = velocity_of(x, t, made_of, range(26, 78), model.model.silence)
        torch.testing.assert_close(v, expected, atol=1e-4, rtol=0)


# Levels.


def advanced(model, positive: list, value: dict, start: int, end: int, first: bool, last: bool, n_steps: int) -> dict:
    (zeroed,) = core_nodes.ConditioningZeroOut().zero_out(positive)
    return core_nodes.common_ksampler(
        model, 5, n_steps, 1.0, "euler", "simple", positive, zeroed, value,
        disable_noise=not first, start_step=start, last_step=end, force_full_denoise=last,
    )[0]  # fmt: skip


@pytest.mark.parametrize("n_steps", [4, 5])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_a_schedule_in_parts_is_the_schedule_at_once(model, strength: float, n_steps: int) -> None:
    """The switch to the words alone comes at a share of the whole schedule, wherever a part of it begins."""
    positive = song(task=text2music(strength), text_to_music=whole("plain", 7))
    empty = latent(torch.zeros(1, N_FRAMES, CHANNELS))
    whole_run = advanced(model, positive, empty, 0, n_steps, True, True, n_steps)["samples"]
    for split in range(1, n_steps):
        first = advanced(model, positive, empty, 0, split, True, False, n_steps)
        parts = advanced(model, positive, first, split, n_steps, False, True, n_steps)["samples"]
        # Between its nodes core divides by 1 - sigma and multiplies again, which rounds but where that is a power of 2.
        torch.testing.assert_close(parts, whole_run, atol=1e-4, rtol=0)
        assert (n_steps, split) != (4, 2) or torch.equal(parts, whole_run)


@pytest.mark.parametrize("n_steps", [4, 5])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_core_switches_in_the_same_step_as_we_do(model, strength: float, n_steps: int) -> None:
    positive = song(task=text2music(strength), text_to_music=whole("plain", 7))
    empty = latent(torch.zeros(1, N_FRAMES, CHANNELS))
    request = Request(seed=5, n_steps=n_steps, shift=3.0, guidance=1.0)
    ours = generate(model, positive, empty, request).latent["samples"]
    given = [noise().mT.contiguous()]
    theirs = comfy.samplers.sample(
        model, given[0], positive, positive, 1.0, model.load_device, comfy.samplers.ksampler("euler"),
        comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", n_steps),
        model.model_options, torch.zeros_like(given[0]), disable_pbar=True, seed=5,
    )  # fmt: skip
    assert_same(theirs, ours)


# What is on a MODEL without effect.

WITHOUT_EFFECT = {
    "patches": {"attn1_patch": [print]},
    "patches_replace": {"dit": {("double_block", 0): print}},
    "rope_options": {"scale_x": 2.0},
    "optimized_attention_override": print,
}


@pytest.mark.parametrize("key", networks.UNREAD)
def test_what_has_no_effect_is_told_on_the_node_that_samples(model, monkeypatch, caplog, key: str) -> None:
    """On core's samplers too: they have no text of ours, so it comes as the text of a running node."""
    shown: list[tuple[str, str]] = []
    server = SimpleNamespace(send_progress_text=lambda text, node_id: shown.append((node_id, text)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    patcher = model.clone()
    patcher.model_options["transformer_options"][key] = WITHOUT_EFFECT[key]
    sentence = f"the MODEL carries {networks.UNREAD[key]}, which have no effect on ACE-Step"
    with CurrentNodeContext("prompt", "12"):
        changed = under_core(patcher, song(), song(), 1.0, noise())
    assert shown == [("12", sentence)]
    assert sentence in caplog.text
    assert torch.equal(changed, under_core(model, song(), song(), 1.0, noise()))
    ours = generate(patcher, song(), latent(torch.zeros(1, N_FRAMES, CHANNELS)), Request(n_steps=1))
    assert sentence in ours.warnings
