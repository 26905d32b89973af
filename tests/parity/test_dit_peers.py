"""The DiT's velocity against diffusers' and ComfyUI's: one forward from scratch, and every shortcut on."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.acestep import AceStep, chunk_context
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Condition
from acestep_pack.acestep_core.pipeline.run import Branch
from acestep_pack.acestep_core.pipeline.schedule import schedule
from golden_models import assert_close, model, z
from parity import peers
from parity.peers import ONE_PART, SIZES

pytestmark = pytest.mark.parity

# Odd and even; in tokens (two frames each) below the window, just past it, and many blocks past it.
LENGTHS = (9, 50, 261, 301, 620)
BATCH, N_STATES = 2, 12
SILENCE = z("peer.silence", 1, 800, 64)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one forward is asked: x [2, T, 64], context [2, T, 128], condition states [2, L, E]."""

    x: Tensor
    context: Tensor
    states: Tensor


def inputs(size: str, n_frames: int) -> Inputs:
    return Inputs(
        z(f"peer.x{n_frames}", BATCH, n_frames, 64),
        z(f"peer.context{n_frames}", BATCH, n_frames, 128),
        z(f"peer.states.{size}", BATCH, N_STATES, model(size).config.encoder.width),
    )


def diffusers_velocity(size: str, x: Tensor, t: float, context: Tensor, states: Tensor) -> Tensor:
    levels = torch.full((len(x),), t)
    return peers.diffusers_transformer(size)(
        x, levels, levels, encoder_hidden_states=states, context_latents=context
    ).sample


def comfyui_velocity(size: str, x: Tensor, t: float, context: Tensor, states: Tensor) -> Tensor:
    levels = torch.full((len(x),), t)
    return peers.comfyui_model(size).decoder(x, levels, levels, None, states, None, context)


@pytest.mark.parametrize("n_frames", LENGTHS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theirs", [diffusers_velocity, comfyui_velocity])
def test_velocity_equals_the_peer(theirs, size, n_frames):
    given = inputs(size, n_frames)
    v = model(size).velocity(given.x, torch.full((BATCH,), 0.83), given.context, given.states)
    assert_close(v, theirs(size, given.x, 0.83, given.context, given.states), ONE_PART)


@pytest.mark.parametrize("size", SIZES)
def test_items_at_different_noise_levels_equal_diffusers(size):
    given, levels = inputs(size, 50), torch.tensor([0.95, 0.3])
    v = model(size).velocity(given.x, levels, given.context, given.states)
    theirs = peers.diffusers_transformer(size)(
        given.x, levels, levels, encoder_hidden_states=given.states, context_latents=given.context
    )
    assert_close(v, theirs.sample, ONE_PART)


@pytest.mark.parametrize("size", SIZES)
def test_velocity_on_comfyui_operations_equals_diffusers(size):
    given = inputs(size, 301)
    v = peers.ours_on_comfyui_ops(size).velocity(given.x, torch.full((BATCH,), 0.5), given.context, given.states)
    assert_close(v, diffusers_velocity(size, given.x, 0.5, given.context, given.states), ONE_PART)


@pytest.mark.parametrize("build", [model, peers.ours_on_comfyui_ops])
@pytest.mark.parametrize("size", SIZES)
def test_run_with_cached_condition_and_modulations_equals_diffusers_at_every_step(size, build):
    given, levels = inputs(size, 301), schedule(4, 3.0)[:-1]
    net: AceStep = build(size)
    everything_real = torch.ones(BATCH, N_STATES, dtype=torch.bool)
    condition = Condition(Tokens(given.states, everything_real), given.context)
    branches = [Branch(condition, (0, 1)), Branch(condition, (0, 1), null=True)]
    run = peers.ConditionRun(net, SILENCE)
    run.expect(levels)
    null = net.null_condition_emb.expand_as(given.states)
    for step, t in enumerate(levels):
        x = torch.cat((given.x, given.x)).roll(step, dims=1)
        v = run.velocity(x, t, branches)
        context, states = torch.cat((given.context, given.context)), torch.cat((given.states, null))
        assert_close(v, diffusers_velocity(size, x, t, context, states), ONE_PART)


@pytest.mark.parametrize("build", [model, peers.ours_on_comfyui_ops])
@pytest.mark.parametrize("size", SIZES)
def test_items_with_different_lyrics_in_a_batch_equal_diffusers_on_each_alone(size, build):
    """The official code lets the padding of a batch leak into cross-attention; ours hides it."""
    given = inputs(size, 301)
    n_text, n_lyric = (7, 5), (300, 140)
    text = Tokens(z("peer.text", BATCH, 7, 48), torch.arange(7) < torch.tensor(n_text)[:, None])
    lyric = Tokens(z("peer.lyric", BATCH, 300, 48), torch.arange(300) < torch.tensor(n_lyric)[:, None])
    timbre = SILENCE[:, :200]
    net: AceStep = build(size)
    packed = net.encoder(text, lyric, timbre.expand(BATCH, -1, -1), torch.arange(BATCH))
    run = peers.ConditionRun(net, SILENCE)
    encoder = peers.official_condition_encoder(size)
    # The items change places: a take's plan is chosen by row.
    v = run.velocity(given.x, 0.7, [Branch(Condition(packed, given.context), (1, 0))])
    for place, item in enumerate((1, 0)):
        states, _ = encoder(
            text.states[item : item + 1, : n_text[item]],
            torch.ones(1, n_text[item], dtype=torch.bool),
            lyric.states[item : item + 1, : n_lyric[item]],
            torch.ones(1, n_lyric[item], dtype=torch.bool),
            timbre,
            torch.zeros(1, dtype=torch.long),
        )
        context = given.context[item : item + 1]
        alone = diffusers_velocity(size, given.x[place : place + 1], 0.7, context, states)
        assert_close(v[place : place + 1], alone, ONE_PART)


@pytest.mark.parametrize("size", SIZES)
def test_null_condition_equals_diffusers_whatever_is_padded(size):
    given = inputs(size, 50)
    some_real = torch.arange(N_STATES) < torch.tensor([[N_STATES], [4]])
    condition = Condition(Tokens(given.states, some_real), given.context)
    v = peers.ConditionRun(model(size), SILENCE).velocity(given.x, 0.5, [Branch(condition, (0, 1), null=True)])
    null = peers.diffusers_condition_encoder(size).null_condition_emb.expand_as(given.states)
    assert_close(v, diffusers_velocity(size, given.x, 0.5, given.context, null), ONE_PART)


@pytest.mark.parametrize("size", SIZES)
def test_flipping_the_mask_or_swapping_context_channels_changes_the_velocity(size):
    """Pins the context's layout: source first, then the mask, which is 1 where the model shall write."""
    given, source = inputs(size, 50), z("peer.source", BATCH, 50, 64)
    inside = (torch.arange(50) >= 20) & (torch.arange(50) < 40)
    wide = inside.float()[None, :, None].expand(BATCH, -1, 64)
    theirs = diffusers_velocity(size, given.x, 0.5, torch.cat((source, wide), dim=-1), given.states)

    def ours(context: Tensor) -> Tensor:
        return model(size).velocity(given.x, torch.full((BATCH,), 0.5), context, given.states)

    rows = inside.expand(BATCH, -1)
    assert_close(ours(chunk_context(source, rows)), theirs, ONE_PART)
    source_part, mask_part = chunk_context(source, rows).split(64, dim=-1)
    for mutated in (chunk_context(source, ~rows), torch.cat((mask_part, source_part), dim=-1)):
        error = (ours(mutated) - theirs).abs().max() / theirs.abs().max()
        assert error > 1e-2, f"a wrong context changes the velocity by only {error:.2e} of its maximum"
