"""What core's CONDITIONING nodes do to a song of ours is what they do to one of core's own text encoder.

A song of ours and one of core's hold the same tensors here, so that after the same node the same samples must come
out: under core's sampler and under ours. Where ours has more than core knows of, a task, the node's effect on the
text is that of a song encoded with such a text, or it is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from comfy_extras import nodes_ace, nodes_edit_model, nodes_flux, nodes_hooks, nodes_video_model
from torch import Tensor

import nodes as core_nodes
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.takes import Request
from acestep_pack.acestep_core.pipeline.tasks import Source, cover, repaint, text2music
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.host.conditioning import Prompt, conditioning_of
from acestep_pack.nodes.host.generate import generate
from acestep_pack.nodes.host.latents import Origins, latent
from golden_models import z

N_FRAMES, CHANNELS = 130, 64  # no shorter than a task's window
CODES = AudioCodes((tuple((613 * i) % 64_000 for i in range(26)),))


@pytest.fixture
def model(golden_model: Callable[[str], object]):
    return golden_model("base")


def whole(name: str, n_tokens: int) -> Tokens:
    return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))


def encoding(name: str = "one", n_tokens: int = 7, codes: AudioCodes | None = None, **given: object) -> Encoding:
    text = whole(f"{name}.text", n_tokens)
    fields = {"text": text, "text_to_music": text, "lyric": whole(f"{name}.lyric", 20), "codes": codes or AudioCodes()}
    return Encoding(**{**fields, **given})


def ours(made_of: Encoding) -> list:
    """As ACE-Step Encode Song gives it."""
    return conditioning_of(made_of, Origins())


def cores(made_of: Encoding) -> list:
    """As TextEncodeAceStepAudio1.5 gives it: a tensor, and what core's model reads beside it."""
    extras = {"pooled_output": None, "conditioning_lyrics": made_of.lyric.states}
    if made_of.codes.n_plans:
        extras["audio_codes"] = [list(sequence) for sequence in made_of.codes.sequences]
    return [[made_of.text.states, extras]]


def under_core(model, positive: list, cfg: float = 3.0) -> Tensor:
    value = {"samples": torch.zeros(1, CHANNELS, N_FRAMES)}
    negative = core_nodes.ConditioningZeroOut().zero_out(positive)[0]
    made = core_nodes.common_ksampler(model, 5, 2, cfg, "euler", "simple", positive, negative, value)
    return made[0]["samples"]


def under_ours(model, positive: list, guidance: float = 3.0) -> Tensor:
    empty = latent(torch.zeros(1, N_FRAMES, CHANNELS))
    return generate(model, positive, empty, Request(seed=5, n_steps=2, shift=3.0, guidance=guidance)).latent["samples"]


SAMPLERS = [under_core, under_ours]
REFERENCE = {"samples": z("reference", 1, 90, CHANNELS).mT.contiguous()}
HALF = torch.cat((torch.ones(1, 1, 55), torch.zeros(1, 1, 75)), dim=-1)


HOOK_NODES = nodes_hooks.NODE_CLASS_MAPPINGS


def masked(song: list, strength: float) -> list:
    return HOOK_NODES["ConditioningSetProperties"]().set_properties(song, strength, "default", mask=HALF)[0]


# Node -> what it makes of a song, given another song.
NODES: dict[str, Callable[[list, list], list]] = {
    "ConditioningAverage": lambda one, other: core_nodes.ConditioningAverage().addWeighted(one, other, 0.3)[0],
    "ConditioningCombine": lambda one, other: core_nodes.ConditioningCombine().combine(one, other)[0],
    "ConditioningConcat": lambda one, other: core_nodes.ConditioningConcat().concat(one, other)[0],
    "ConditioningMultiply": lambda one, _: core_nodes.ConditioningMultiply().multiply(one, 0.5)[0],
    "ConditioningZeroOut": lambda one, _: core_nodes.ConditioningZeroOut().zero_out(one)[0],
    "ConditioningSetTimestepRange": lambda one, other: [
        *core_nodes.ConditioningSetTimestepRange().set_range(one, 0.0, 0.5)[0],
        *core_nodes.ConditioningSetTimestepRange().set_range(other, 0.5, 1.0)[0],
    ],
    "ConditioningSetArea": lambda one, other: [
        *core_nodes.ConditioningSetArea().append(one, 8, 8 * 30, 0, 8 * 10, 1.0)[0],
        *other,
    ],
    "ConditioningSetAreaPercentage": lambda one, other: [
        *core_nodes.ConditioningSetAreaPercentage().append(one, 1.0, 0.5, 0.0, 0.25, 1.0)[0],
        *other,
    ],
    "ConditioningSetAreaPercentageVideo": lambda one, other: [
        *nodes_video_model.ConditioningSetAreaPercentageVideo().append(one, 1.0, 1.0, 0.5, 0.0, 0.0, 0.25, 1.0)[0],
        *other,
    ],
    "ConditioningSetAreaStrength": lambda one, other: [
        *core_nodes.ConditioningSetAreaStrength().append(one, 0.2)[0],
        *other,
    ],
    "ConditioningSetMask": lambda one, other: [
        *core_nodes.ConditioningSetMask().append(one, HALF, "default", 1.0)[0],
        *other,
    ],
    "ConditioningSetMask, bounds": lambda one, other: [
        *core_nodes.ConditioningSetMask().append(one, HALF, "mask bounds", 1.0)[0],
        *other,
    ],
    "ConditioningSetProperties": lambda one, other: [*masked(one, 0.4), *other],
    "ConditioningSetDefaultCombine": lambda one, other: HOOK_NODES[
        "ConditioningSetDefaultCombine"
    ]().set_default_and_combine(masked(one, 1.0), other)[0],
    "PairConditioningCombine": lambda one, other: HOOK_NODES["PairConditioningCombine"]().combine(
        one, one, other, other
    )[0],
    "ReferenceTimbreAudio": lambda one, _: nodes_ace.ReferenceAudio.execute(one, REFERENCE).result[0],
    "ReferenceLatent": lambda one, _: nodes_edit_model.ReferenceLatent.execute(one, REFERENCE).result[0],
    "FluxGuidance": lambda one, _: nodes_flux.FluxGuidance.execute(one, 3.5).result[0],
}
WITHOUT_EFFECT = {"ReferenceLatent", "FluxGuidance"}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", NODES)
def test_a_node_does_to_a_song_of_ours_what_it_does_to_one_of_cores(model, name: str, sampler: Callable) -> None:
    one, other = encoding("one", 7, CODES), encoding("other", 9, CODES)
    made, expected = (sampler(model, NODES[name](kind(one), kind(other))) for kind in (ours, cores))
    assert torch.equal(made, expected)
    assert torch.isfinite(made).all()
    assert torch.equal(made, sampler(model, ours(one))) == (name in WITHOUT_EFFECT)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_reference_of_ours_lies_where_cores_does_and_gives_way_to_one_that_is_added(model, sampler: Callable) -> None:
    own = z("timbre", 2, 30, CHANNELS)
    mine = ours(encoding(timbre=own))
    assert [each.shape for each in mine[0][1]["reference_audio_timbre_latents"]] == [(1, CHANNELS, 30)] * 2
    assert torch.equal(Prompt.of(mine, N_FRAMES).encoding.timbre, own)
    assert not torch.equal(sampler(model, mine), sampler(model, ours(encoding())))
    added = NODES["ReferenceTimbreAudio"](mine, mine)
    assert torch.equal(sampler(model, added), sampler(model, NODES["ReferenceTimbreAudio"](cores(encoding()), [])))


# Tasks, of which core knows nothing.

SOURCE = Source(z("source", 1, N_FRAMES, CHANNELS))
TASKS = {
    "cover": cover(SOURCE, strength=1.0),
    "repaint": repaint(SOURCE, region(N_FRAMES, 0.8, 1.6)),
    "half a cover": cover(SOURCE, strength=0.5),
    "half of codes": text2music(0.5),
}


def tasked(name: str, song: str, n_tokens: int = 7) -> Encoding:
    task = TASKS[name]
    codes = CODES if name == "half of codes" else None
    return encoding(song, n_tokens, codes, task=task, text_to_music=whole(f"{song}.plain", n_tokens - 1))


TEXT_NODES = ("ConditioningAverage", "ConditioningConcat", "ConditioningMultiply")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("node", TEXT_NODES)
@pytest.mark.parametrize("name", ["cover", "repaint"])
def test_a_changed_text_of_a_task_is_the_song_encoded_with_it(model, name: str, node: str, sampler: Callable) -> None:
    one, other = tasked(name, "one"), tasked(name, "other")
    changed = NODES[node](ours(one), ours(other))
    states = changed[0][0]
    text = Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool))
    assert torch.equal(sampler(model, changed), sampler(model, ours(replace(one, text=text))))
    assert not torch.equal(sampler(model, changed), sampler(model, ours(one)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("node", TEXT_NODES)
@pytest.mark.parametrize("name", ["half a cover", "half of codes"])
def test_a_changed_text_beside_a_second_one_is_refused(model, name: str, node: str, sampler: Callable) -> None:
    changed = NODES[node](ours(tasked(name, "one")), ours(tasked(name, "other")))
    with pytest.raises(ValueError, match="a node has changed the text of this CONDITIONING, but the last 50% of the"):
        sampler(model, changed)


@pytest.mark.parametrize("name", TASKS)
def test_a_song_without_its_words_is_the_unconditional_one_in_every_task(model, name: str) -> None:
    made_of = tasked(name, "one")
    zeroed = NODES["ConditioningZeroOut"](ours(made_of), [])
    without, guided = (under_core(model, zeroed, cfg=cfg) for cfg in (1.0, 5.0))
    torch.testing.assert_close(without, guided, atol=1e-4, rtol=0)
    assert not torch.equal(under_core(model, zeroed), under_core(model, ours(made_of)))


def test_songs_of_different_sources_cannot_be_combined(model) -> None:
    one, other = ours(tasked("cover", "one")), ours(tasked("repaint", "other"))
    with pytest.raises(ValueError, match=r"the combined CONDITIONINGs have different tasks \(cover, repaint\)"):
        under_ours(model, one + other)


def test_padding_stays_hidden_beside_a_text_that_is_added(model) -> None:
    """Two plans whose captions differ in length: what a node adds to the text is seen, the padding is not."""
    padded = Tokens(z("padded", 2, 7, 48), torch.arange(7) < torch.tensor([7, 4])[:, None])
    made_of = encoding(codes=AudioCodes(CODES.sequences * 2), text=padded, text_to_music=padded)
    added = core_nodes.ConditioningConcat().concat(ours(made_of), [[z("more", 2, 3, 48), {}]])[0]
    text = Prompt.of(added, N_FRAMES).encoding.text
    assert text.attention_mask.tolist() == [[True] * 10, [True] * 4 + [False] * 3 + [True] * 3]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_conditioning_of_another_model_is_refused(model, sampler: Callable) -> None:
    with pytest.raises(ValueError, match=r"this CONDITIONING is not ACE-Step 1\.5's; make it with"):
        sampler(model, [[z("image", 1, 77, 768), {"pooled_output": None}]])


def test_an_empty_conditioning_is_refused(model) -> None:
    with pytest.raises(ValueError, match="this CONDITIONING is empty"):
        under_ours(model, [])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_no_mask_of_a_condition(model, sampler: Callable) -> None:
    picture = torch.eye(64)[None]
    masked = core_nodes.ConditioningSetMask().append(ours(encoding()), picture, "default", 1.0)[0]
    with pytest.raises(ValueError, match="this mask is a picture of 64x64; for sound it is one row over time"):
        sampler(model, masked)
