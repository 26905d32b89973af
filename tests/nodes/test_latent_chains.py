"""What is said of an item of a LATENT is true or left unsaid, whatever core's nodes have done to the latent.

The law is tried on random chains of core's nodes, beside a plain model of which item came from where. An item of the
model is the name of what it holds, or None where a node has made something new of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import safetensors.torch
import torch
from comfy_extras import nodes_latent
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import nodes as core_nodes
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.takes import Request
from acestep_pack.acestep_core.pipeline.tasks import Source, Task
from acestep_pack.acestep_core.scoring.score import NamedScore, Score, Scores
from acestep_pack.acestep_core.types import AudioCodes, Take
from acestep_pack.nodes import save as saving
from acestep_pack.nodes.host.conditioning import Prompt, conditioning_of
from acestep_pack.nodes.host.generate import generate
from acestep_pack.nodes.host.latents import (
    ACESTEP_KEY,
    Origins,
    decoded_audio,
    decoded_from,
    keys_of,
    latent,
    latent_plans,
    latent_takes,
    recorded_latent,
    recording_of,
)
from golden_models import z

N_FRAMES, CHANNELS = 24, 64
N_SAMPLES = N_FRAMES * 1_920
N_PLANS = 2
Item = str | None


@dataclass(frozen=True)
class Chain:
    """A LATENT as core's nodes have left it, and what each of its items really holds."""

    value: dict
    items: tuple[Item, ...]
    song: str  # whose Origins it carries, "" for those that carry none


def samples(n_items: int, seed: int) -> Tensor:
    return torch.randn(n_items, N_FRAMES, CHANNELS, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """Two songs, each sampled twice, and recordings."""

    takes: dict[str, Take] = field(default_factory=dict)
    recordings: dict[str, Tensor] = field(default_factory=dict)
    leaves: list[Chain] = field(default_factory=list)


def world() -> World:
    made = World()
    for song, n_samplings in (("a", 2), ("b", 1)):
        origins = Origins()
        for sampling in range(n_samplings):
            names = tuple(f"{song}{sampling}{item}" for item in range(2 * N_PLANS))
            seed = 100 * (1 + sampling) + 1_000 * ord(song)
            takes = tuple(Take(seed + item, item // 2, 8) for item in range(len(names)))
            made.takes |= dict(zip(names, takes, strict=True))
            made.leaves.append(Chain(latent(samples(len(names), seed), takes, origins), names, song))
    waveforms = torch.randn(3, 2, N_SAMPLES, generator=torch.Generator().manual_seed(1))
    names = ("r0", "r1", "r2")
    made.recordings = dict(zip(names, waveforms, strict=True))
    made.leaves.append(Chain(recorded_latent(samples(3, 5), waveforms), names, "r"))
    return made


WORLD = world()
LEAVES = st.sampled_from(WORLD.leaves)


# Core's nodes, each with what it does to the items.


def pick(chain: Chain, index: int, length: int) -> Chain:
    (value,) = core_nodes.LatentFromBatch().frombatch(chain.value, index, length)
    start = min(index, len(chain.items) - 1)
    return Chain(value, chain.items[start : start + length], chain.song)


def narrow(chain: Chain, index: int, length: int) -> Chain:
    """LatentCut over "t", which is the batch of a latent [B, 64, T]."""
    value = nodes_latent.LatentCut.execute(chain.value, "t", index, length).result[0]
    start = min(index, len(chain.items) - 1)
    return Chain(value, chain.items[start : start + length], chain.song)


def batch(chain: Chain, other: Chain) -> Chain:
    if not same_length(chain, other):
        return chain
    value = nodes_latent.LatentBatch.execute(chain.value, other.value).result[0]
    return Chain(value, chain.items + other.items, chain.song)


def stack(chain: Chain, other: Chain, dim: str) -> Chain:
    """LatentConcat over "t", which joins batches; it repeats or cuts the second to as many items as the first has."""
    if not same_length(chain, other):
        return chain
    value = nodes_latent.LatentConcat.execute(chain.value, other.value, dim).result[0]
    n = len(chain.items)
    more = (other.items * n)[:n] if len(other.items) < n else other.items[:n]
    return Chain(value, more + chain.items if "-" in dim else chain.items + more, chain.song)


def repeat(chain: Chain, amount: int) -> Chain:
    (value,) = core_nodes.RepeatLatentBatch().repeat(chain.value, amount)
    return Chain(value, chain.items * amount, chain.song)


def reseed(chain: Chain, behaviour: str) -> Chain:
    value = nodes_latent.LatentBatchSeedBehavior.execute(chain.value, behaviour).result[0]
    return Chain(value, chain.items, chain.song)


def mask(chain: Chain) -> Chain:
    (value,) = core_nodes.SetLatentNoiseMask().set_mask(chain.value, torch.ones(1, 1, N_FRAMES))
    return Chain(value, chain.items, chain.song)


def times(chain: Chain, factor: float) -> Chain:
    value = nodes_latent.LatentMultiply.execute(chain.value, factor).result[0]
    return Chain(value, chain.items if factor == 1 else (None,) * len(chain.items), chain.song)


def mixed(chain: Chain, other: Chain, node: Callable) -> Chain:
    if not same_length(chain, other) or len(chain.items) != len(other.items):
        return chain
    if any(map(operator.eq, chain.items, other.items)):  # the mean of an item and itself is that item
        return chain
    return Chain(node(chain.value, other.value), (None,) * len(chain.items), chain.song)


def longer(chain: Chain, other: Chain) -> Chain:
    if not same_length(chain, other):
        return chain
    value = nodes_latent.LatentConcat.execute(chain.value, other.value, "x").result[0]
    return Chain(value, (None,) * len(chain.items), chain.song)


def shorter(chain: Chain, index: int) -> Chain:
    value = nodes_latent.LatentCut.execute(chain.value, "x", index, 12).result[0]
    return Chain(value, (None,) * len(chain.items), chain.song)


def sliced(chain: Chain) -> Chain:
    value = nodes_latent.LatentCutToBatch.execute(chain.value, "x", 4).result[0]
    return Chain(value, (None,) * len(value["samples"]), chain.song)


def sampled(chain: Chain, seed: int) -> Chain:
    """As any sampler of core's leaves it: other samples, and everything beside them as it was."""
    more = torch.randn(chain.value["samples"].shape, generator=torch.Generator().manual_seed(seed))
    return Chain({**chain.value, "samples": chain.value["samples"] + more}, (None,) * len(chain.items), chain.song)


def saved_and_loaded(chain: Chain) -> Chain:
    """As SaveLatent writes and LoadLatent reads: the samples alone."""
    stored = safetensors.torch.load(safetensors.torch.save({"latent_tensor": chain.value["samples"].contiguous()}))
    return Chain({"samples": stored["latent_tensor"].float()}, chain.items, "")


def same_length(one: Chain, other: Chain) -> bool:
    return one.value["samples"].shape[1:] == other.value["samples"].shape[1:]


def blend(one: dict, other: dict) -> dict:
    return core_nodes.LatentBlend().blend(one, other, 0.5)[0]


MIXERS = [
    blend,
    lambda one, other: nodes_latent.LatentAdd.execute(one, other).result[0],
    lambda one, other: nodes_latent.LatentSubtract.execute(one, other).result[0],
]
INDEX, LENGTH = st.integers(0, 9), st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(st.just(pick), INDEX, LENGTH),
    st.tuples(st.just(narrow), INDEX, LENGTH),
    st.tuples(st.just(batch), LEAVES),
    st.tuples(st.just(stack), LEAVES, st.sampled_from(["t", "-t"])),
    st.tuples(st.just(repeat), st.integers(1, 3)),
    st.tuples(st.just(reseed), st.sampled_from(["random", "fixed"])),
    st.tuples(st.just(mask)),
    st.tuples(st.just(times), st.sampled_from([1.0, 0.5])),
    st.tuples(st.just(mixed), LEAVES, st.sampled_from(MIXERS)),
    st.tuples(st.just(longer), LEAVES),
    st.tuples(st.just(shorter), st.integers(0, 11)),
    st.tuples(st.just(sliced)),
    st.tuples(st.just(sampled), st.integers(0, 3)),
    st.tuples(st.just(saved_and_loaded)),
)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    chain = draw(LEAVES)
    for node, *inputs in draw(st.lists(STEPS, min_size=1, max_size=5)):
        if len(chain.items) <= 24:
            chain = node(chain, *inputs)
    return chain


@given(chains())
def test_a_take_is_known_for_what_it_is_or_not_at_all(chain: Chain) -> None:
    known = latent_takes(chain.value)
    assert len(known) == len(chain.items) == len(chain.value["samples"])
    for item, take in zip(chain.items, known, strict=True):
        own = WORLD.takes.get(item or "")
        assert take in (own, None)
        # Of its own song nothing is forgotten, through however many nodes it went.
        if own is not None and item[0] == chain.song:
            assert take == own


@given(chains())
def test_a_recording_is_an_items_own_or_none(chain: Chain) -> None:
    found = recording_of(chain.value)
    own = [WORLD.recordings.get(item or "") for item in chain.items]
    if found is not None:
        assert all(each is not None for each in own)
        assert torch.equal(found, torch.stack(own))
    elif chain.song == "r":
        assert any(each is None for each in own)


@given(chains())
def test_a_plan_is_an_items_own_or_refused(chain: Chain) -> None:
    """What Decode, Score Lyrics and Save choose a source, a condition and codes by."""
    if None in latent_takes(chain.value):
        with pytest.raises(ValueError, match="nobody knows which of 2 plans item"):
            latent_plans(chain.value, N_PLANS)
    else:
        assert latent_plans(chain.value, N_PLANS) == [WORLD.takes[item].plan for item in chain.items]
    assert latent_plans(chain.value, 1) == [0] * len(chain.items)


@given(chains(), st.permutations(range(4)))
def test_a_score_is_an_items_own_or_refused(chain: Chain, order: list[int]) -> None:
    scored = WORLD.leaves[0]
    takes = tuple(Score((NamedScore("lyrics", place / 10),)) for place in range(4))
    scores = Scores(takes, (0, 0, 1, 1), N_FRAMES, keys_of(scored.value)).picked(order)
    own = {name: takes[place] for place, name in enumerate(scored.items)}
    if set(chain.items) <= own.keys():
        assert scores.ordered(keys_of(chain.value)).takes == tuple(own[item] for item in chain.items)
    else:
        with pytest.raises(ValueError, match="is not among the 4 takes"):
            scores.ordered(keys_of(chain.value))


# Samplers, which make new items of a known plan.


@pytest.fixture
def model(golden_model: Callable[[str], object]):
    return golden_model("turbo")


def song(n_plans: int = N_PLANS) -> tuple[list, dict]:
    """The outputs of Encode Song: CONDITIONING and an empty LATENT."""
    text = Tokens(z("text", 1, 7, 48), torch.ones(1, 7, dtype=torch.bool))
    lyric = Tokens(z("lyric", 1, 20, 48), torch.ones(1, 20, dtype=torch.bool))
    codes = AudioCodes(tuple(tuple((plan * 7919 + 613 * i) % 64_000 for i in range(5)) for plan in range(n_plans)))
    origins = Origins()
    encoding = Encoding(text, text, lyric, codes=codes)
    return conditioning_of(encoding, origins), latent(torch.zeros(n_plans, N_FRAMES, CHANNELS), origins=origins)


def ksampler(model, positive: list, value: dict, seed: int, denoise: float = 1.0) -> dict:
    negative = core_nodes.ConditioningZeroOut().zero_out(positive)[0]
    return core_nodes.common_ksampler(
        model, seed, 2, 1.0, "euler", "simple", positive, negative, value, denoise=denoise
    )[0]


def test_cores_sampler_leaves_no_seed_of_ours_and_the_plan_that_it_followed(model) -> None:
    positive, empty = song()
    made = ksampler(model, positive, empty, seed=3)
    assert latent_takes(made) == (Take(plan=0), Take(plan=1))
    assert latent_takes(core_nodes.LatentFromBatch().frombatch(made, 1, 1)[0]) == (Take(plan=1),)


def test_a_second_pass_is_another_take(model) -> None:
    positive, empty = song()
    ours = generate(model, positive, empty, Request(seed=7, n_steps=2)).latent
    assert [take.seed for take in latent_takes(ours)] == [7, 8]
    (second,) = core_nodes.LatentFromBatch().frombatch(ours, 1, 1)
    refined = ksampler(model, positive, second, seed=99, denoise=0.5)
    # One item follows the first plan of a conditioning of two, whichever plan it was sung from before.
    assert latent_takes(refined) == (Take(plan=0),)
    assert latent_takes(second) == (Take(8, 1, 2),)


def test_takes_of_one_song_are_known_beside_each_other_whoever_sampled_them(model) -> None:
    positive, empty = song()
    ours = generate(model, positive, empty, Request(seed=7, n_steps=2)).latent
    theirs = ksampler(model, positive, empty, seed=99)
    joined = nodes_latent.LatentBatch.execute(theirs, ours).result[0]
    assert latent_takes(joined) == (Take(plan=0), Take(plan=1), Take(7, 0, 2), Take(8, 1, 2))
    other = generate(model, *song(), Request(seed=1, n_steps=2)).latent
    assert latent_takes(nodes_latent.LatentBatch.execute(ours, other).result[0])[2:] == (None, None)


def test_where_nothing_is_generated_no_seed_is_named(model) -> None:
    positive, _ = song(1)
    value = {**latent(samples(1, 3)), "noise_mask": torch.zeros(1, 1, 1, N_FRAMES)}
    made = generate(model, positive, value, Request(seed=7, n_steps=2))
    assert made.summary == "nothing to generate: the source as it is"
    assert torch.equal(made.latent["samples"], value["samples"])
    assert latent_takes(made.latent) == (Take(n_steps=2),)


# The batch of a latent that is sampled into.


def test_a_batch_of_empty_latents_makes_as_many_takes(model) -> None:
    positive, empty = song(1)
    (four,) = core_nodes.RepeatLatentBatch().repeat(empty, 4)
    made = generate(model, positive, four, Request(seed=7, n_steps=2))
    asked = generate(model, positive, empty, Request(seed=7, n_steps=2, takes_per_plan=4))
    assert torch.equal(made.latent["samples"], asked.latent["samples"])
    assert [take.seed for take in latent_takes(made.latent)] == [7, 8, 9, 10]
    assert made.warnings == ()


@pytest.mark.parametrize(("n_items", "takes_per_plan"), [(4, 2), (3, 1)])
def test_a_batch_that_is_not_followed_is_told(model, n_items: int, takes_per_plan: int) -> None:
    positive, _ = song(2)
    empty = latent(torch.zeros(n_items, N_FRAMES, CHANNELS))
    made = generate(model, positive, empty, Request(n_steps=2, takes_per_plan=takes_per_plan))
    told = f'the latent holds {n_items} items, but {2 * takes_per_plan} takes are made: "takes_per_plan" says how many'
    assert (told in made.warnings) == (n_items != 2 * takes_per_plan)
    assert len(made.latent["samples"]) == 2 * takes_per_plan


@pytest.mark.parametrize("takes_per_plan", [1, 3])
def test_every_item_under_a_noise_mask_is_a_take_of_its_own(model, takes_per_plan: int) -> None:
    positive, _ = song(1)
    mask = torch.zeros(3, 1, 1, N_FRAMES)
    for item in range(3):
        mask[item, ..., 4 + item : 12] = 1
    recordings = {**latent(samples(3, 4)), "noise_mask": mask}
    made = generate(model, positive, recordings, Request(seed=7, n_steps=2, takes_per_plan=takes_per_plan))
    for item, take in enumerate(made.latent["samples"]):
        alone = {**latent(samples(3, 4)[item : item + 1]), "noise_mask": mask[item : item + 1]}
        expected = generate(model, positive, alone, Request(seed=7 + item, n_steps=2)).latent["samples"][0]
        torch.testing.assert_close(take, expected, atol=1e-4, rtol=0)


def test_a_picture_is_no_noise_mask_unless_all_its_rows_are_one(model) -> None:
    positive, _ = song(1)
    row = (torch.arange(64) % 8 > 3).float()
    for picture, sentence in ((torch.eye(64)[None], "this mask is a picture of 64x64"), (row.expand(1, 64, 64), "")):
        (masked,) = core_nodes.SetLatentNoiseMask().set_mask(latent(samples(1, 4)), picture)
        if sentence:
            with pytest.raises(ValueError, match=sentence):
                generate(model, positive, masked, Request(n_steps=2))
        else:
            (flat,) = core_nodes.SetLatentNoiseMask().set_mask(latent(samples(1, 4)), row.expand(1, 1, 64))
            made, expected = (generate(model, positive, each, Request(n_steps=2)) for each in (masked, flat))
            assert torch.equal(made.latent["samples"], expected.latent["samples"])


# What a latent says that is not followed.


def test_a_noise_mask_beside_a_task_is_told(model) -> None:
    positive, _ = song(1)
    masked = {**latent(torch.zeros(1, N_FRAMES, CHANNELS)), "noise_mask": torch.ones(1, 1, 1, N_FRAMES)}
    task = Task("cover", (Source(samples(1, 4)),), N_FRAMES, window=(0, N_FRAMES))
    covered = conditioning_of(replace(Prompt.of(positive, N_FRAMES).encoding, codes=AudioCodes(), task=task), Origins())
    told = "the latent's noise mask has no effect: the cover says what is generated"
    assert generate(model, covered, masked, Request(n_steps=2)).warnings == (told,)


@pytest.mark.parametrize("behaviour", ["fixed", "random"])
def test_which_noise_an_empty_item_should_get_is_told(model, behaviour: str) -> None:
    positive, empty = song()
    given = nodes_latent.LatentBatchSeedBehavior.execute(empty, behaviour).result[0]
    told = "which noise each empty item should get (batch_index) has no effect: seeds tell that"
    assert (told in generate(model, positive, given, Request(n_steps=2)).warnings) == (behaviour == "fixed")


# Sound, which remembers what it was decoded from.


def audio_of(value: dict) -> dict:
    """As Decode gives it: each item a sound of its own."""
    return decoded_audio(value["samples"].repeat(1, 1, 3)[:, :2].contiguous(), 48_000, value)


@given(chains(), st.permutations(range(4)))
def test_a_sound_is_saved_as_the_take_that_it_was_decoded_from(chain: Chain, order: list[int]) -> None:
    """Whatever latent of the same song is connected beside it, in whatever order."""
    scored = WORLD.leaves[0]
    ours = [item for item in chain.items if item in scored.items and chain.song == scored.song]
    sources = decoded_from(audio_of(chain.value))
    assert [source.key for source in sources] == list(keys_of(chain.value))
    if len(ours) == len(chain.items):
        turned = {**scored.value, "samples": scored.value["samples"][list(order)]}
        saved = saving.sources_of(audio_of(chain.value), turned)
        assert [source.take for source in saved] == [WORLD.takes[item] for item in chain.items]
    other = {"samples": samples(len(chain.items), 77).mT.contiguous(), ACESTEP_KEY: Origins()}
    other[ACESTEP_KEY].add(other["samples"], [Take(1)] * len(chain.items))
    with pytest.raises(ValueError, match="the latent holds other takes than the audio; connect the latent that was"):
        saving.sources_of(audio_of(chain.value), other)


def test_of_a_sound_that_was_changed_nothing_is_known() -> None:
    value = WORLD.leaves[0].value
    sound = audio_of(value)
    quieter = {**sound, "waveform": 0.5 * sound["waveform"]}
    assert decoded_from(quieter) == (None,) * 4
    # Then a latent beside it is taken item by item, as before.
    assert [source.take for source in saving.sources_of(quieter, value)] == list(latent_takes(value))
