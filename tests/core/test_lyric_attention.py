"""The attention of chosen heads, against a model whose every attention is written out, in both released shapes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.models.layers import AttentionShape, Build, TorchOps, alternating
from acestep_pack.acestep_core.scoring import attention
from acestep_pack.acestep_core.scoring.attention import (
    LyricHeads,
    attention_bytes,
    lyric_attention,
    lyric_heads,
    noise_level,
)
from golden_models import assert_close

pytestmark = pytest.mark.usefixtures("inference_mode")

XL_CONFIG = {"3": [18, 27], "4": [22], "5": [5, 6, 7], "6": [2, 12, 13], "7": [20, 21]}
ROWS = range(3, 11)
N_TOKENS, N_FRAMES = 21, 31
T = 0.125


class WrittenOut(TorchOps):
    """Operations that keep every whole attention matrix they make, cross-attention's told by its length."""

    seen: list[Tensor] = []  # noqa: RUF012

    @classmethod
    def attention(cls, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        n_sharing = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(n_sharing, 1), v.repeat_interleave(n_sharing, 1)
        scores = (q @ k.mT / q.shape[-1] ** 0.5) + (0 if mask is None else mask)
        weights = scores.softmax(-1)
        if k.shape[2] == N_TOKENS:
            cls.seen.append(weights)
        return weights @ v


def shape(n_heads: int, n_kv_heads: int) -> AttentionShape:
    return AttentionShape(32, 48, n_heads, n_kv_heads, 4, window=4)


def config_of(size: str) -> AceStepConfig:
    n_layers, n_heads = {"2b": (24, 16), "xl": (32, 32), "odd": (4, 8)}[size]
    decoder, encoder = shape(n_heads, 8), shape(8, 8)
    return AceStepConfig(decoder, encoder, alternating(n_layers), 16, 1, 1, 1)


@functools.cache
def model(size: str) -> AceStep:
    """Return a model of a released number of layers and heads. Shared between tests: leave it as you found it."""
    built = AceStep(config_of(size), Build(ops=WrittenOut))
    generator = torch.Generator().manual_seed(1)
    for name, weight in built.named_parameters():
        numbers = torch.randn(weight.shape, generator=generator)
        # Sharp queries, or all attention is alike and a wrong head goes unnoticed.
        scale = 3.0 if "q_norm" in name else 1.0 if "norm" in name else weight[0].numel() ** -0.5
        weight.data = scale * (1 + 0.1 * numbers) if "norm" in name else scale * numbers
    return built.eval().requires_grad_(False)


def inputs(n_takes: int = 2, n_frames: int = N_FRAMES) -> tuple[Tokens, Tensor, Tensor]:
    """Return condition tokens, the last of which are padding in every second take, context and latents."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(n_takes, N_TOKENS, 32, generator=generator)
    sizes = torch.tensor([[N_TOKENS - 2 * (take % 2)] for take in range(n_takes)])
    context = torch.randn(n_takes, n_frames, 128, generator=generator)
    latents = torch.randn(n_takes, n_frames, 64, generator=generator)
    return Tokens(states, torch.arange(N_TOKENS) < sizes), context, latents


def look(size: str, tokens: Tokens, context: Tensor, latents: Tensor, **changes) -> Tensor:
    settings = {"rows": ROWS, "t": T, "heads": lyric_heads(config_of("2b" if size == "odd" else size))} | changes
    return lyric_attention(model(size), tokens, context, latents, **settings)


@pytest.mark.parametrize("n_frames", [N_FRAMES, 30])
@pytest.mark.parametrize("size", ["2b", "xl"])
def test_attention_equals_that_of_a_whole_pass_over_every_head(size: str, n_frames: int) -> None:
    tokens, context, latents = inputs(n_frames=n_frames)
    found = look(size, tokens, context, latents)
    noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(42))
    WrittenOut.seen = []
    model(size).velocity(
        T * noise + (1 - T) * latents, torch.tensor([T]), context, tokens.states, tokens.attention_mask
    )
    every_layer = WrittenOut.seen
    assert len(every_layer) == len(model(size).decoder.layers)
    pairs = lyric_heads(config_of(size)).pairs
    expected = torch.stack([every_layer[layer][:, head, :, ROWS.start : ROWS.stop] for layer, head in pairs], 1).mT
    assert found.shape == (2, len(pairs), len(ROWS), -(-n_frames // 2))
    assert_close(found, expected, 1e-5)


def test_the_share_of_lyrics_is_of_all_tokens_and_padding_has_none() -> None:
    found = look("2b", *inputs(), rows=range(N_TOKENS))
    assert torch.allclose(found.sum(2), torch.ones(()), atol=1e-5)
    assert not found[1, :, -2:].any()
    assert look("2b", *inputs()).sum(2).max() < 1


@pytest.mark.parametrize(("size", "n_needed"), [("2b", 7), ("xl", 8)])
def test_layers_below_the_last_head_are_not_run(size: str, n_needed: int) -> None:
    ran = []
    layers = model(size).decoder.layers
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    look(size, *inputs())
    for hook in hooks:
        hook.remove()
    assert ran == list(layers[:n_needed])


def test_watching_changes_no_velocity() -> None:
    tokens, context, latents = inputs()
    before = model("2b").velocity(latents, torch.tensor([T]), context, tokens.states, tokens.attention_mask)
    look("2b", tokens, context, latents)
    assert torch.equal(
        before, model("2b").velocity(latents, torch.tensor([T]), context, tokens.states, tokens.attention_mask)
    )


@pytest.mark.parametrize("t", [T, attention.PURE_NOISE])
def test_a_take_in_a_batch_sees_what_it_sees_alone(t: float) -> None:
    tokens, context, latents = inputs(4)
    batch = look("2b", tokens, context, latents, t=t)
    for take in range(4):
        n_real = int(tokens.attention_mask[take].sum())
        own = Tokens(tokens.states[take : take + 1, :n_real], tokens.attention_mask[take : take + 1, :n_real])
        alone = look("2b", own, context[take : take + 1], latents[take : take + 1], t=t)
        assert_close(batch[take : take + 1], alone, 1e-5)


def test_pure_noise_forgets_the_take() -> None:
    tokens, context, latents = inputs()
    heard = [look("2b", tokens, context, music, t=attention.PURE_NOISE) for music in (latents, -latents)]
    assert torch.equal(*heard)


def test_inputs_stay_as_they_are() -> None:
    given = inputs()
    before = given[2].clone()
    look("2b", *given)
    assert torch.equal(given[2], before)


def test_memory_counts_what_is_returned_and_one_head_of_what_passes() -> None:
    heads = lyric_heads(config_of("2b"))
    returned = look("2b", *inputs())
    passing = 3 * 2 * 16 * N_TOKENS * 4
    assert attention_bytes(heads, 2, N_FRAMES, N_TOKENS, ROWS) == returned.nbytes + passing


# Which heads.


def test_a_checkpoint_that_names_its_heads_is_believed() -> None:
    assert lyric_heads(config_of("odd"), {"2": [5, 1], "0": [3]}) == LyricHeads(((0, 3), (2, 1), (2, 5)))
    assert lyric_heads(config_of("odd"), '{"2": [1]}') == LyricHeads(((2, 1),))
    assert lyric_heads(config_of("2b"), {"2": [1]}).pairs == ((2, 1),)


def test_xls_table_is_the_one_its_config_has_and_is_marked_as_a_third_partys() -> None:
    known = lyric_heads(config_of("xl"))
    assert known.pairs == lyric_heads(config_of("xl"), XL_CONFIG).pairs
    assert known.third_party
    assert not lyric_heads(config_of("2b")).third_party


def test_a_model_of_another_size_needs_heads_of_its_own() -> None:
    with pytest.raises(ValueError, match="this model has 4 layers of 8; add"):
        lyric_heads(config_of("odd"))


def test_heads_that_the_model_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="names head 18 of layer 3, the model has 4 layers of 8 heads"):
        lyric_heads(config_of("odd"), XL_CONFIG)


@pytest.mark.parametrize("said", ["[1, 2]", "nonsense", {"three": [1]}, {"3": 1}])
def test_a_table_that_is_none_is_refused(said) -> None:
    with pytest.raises(ValueError, match="lyric_alignment_layers_config must map layers to lists of heads"):
        lyric_heads(config_of("2b"), said)


def test_a_table_without_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="names no head"):
        lyric_heads(config_of("2b"), {"3": []})


# Bad input.


def test_broken_latents_are_told_by_take() -> None:
    tokens, context, latents = inputs()
    latents[1, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="take 2 of the latents holds NaN or infinity; sample it again"):
        look("2b", tokens, context, latents)


def test_lyrics_longer_than_the_condition_are_refused() -> None:
    with pytest.raises(ValueError, match="the lyrics end at token 22, the conditioning has 21; connect"):
        look("2b", *inputs(), rows=range(3, 22))


def test_a_latent_of_another_length_or_number_is_refused() -> None:
    tokens, context, latents = inputs()
    with pytest.raises(ValueError, match="the latent has 30 frames, its condition 31"):
        look("2b", tokens, context, latents[:, :30])
    with pytest.raises(ValueError, match="1 takes do not go with 2 conditions"):
        look("2b", tokens, context, latents[:1])


def test_the_noise_level_is_one_step_of_those_a_take_was_made_in() -> None:
    assert (noise_level(8), noise_level(50)) == (0.125, 0.02)
    with pytest.raises(ValueError, match="in at least one step, got 0"):
        noise_level(0)
