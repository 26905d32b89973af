"""Each part of the model against what the official code computes on the same tiny weights."""

import json

import pytest
import torch

from acestep_pack.acestep_core.models.conditioner import Tokens
from golden_models import GOLDEN, SINGLE_FORWARD, assert_close, golden, model, weights, z

pytestmark = pytest.mark.parity

SIZES = ("2b", "xl")
NOISE_LEVELS = (1.0, 0.9545454545454546, 0.3)
LONG = 301  # stored every tenth frame


@pytest.mark.parametrize("size", SIZES)
def test_weight_formula_gives_the_weights_the_official_code_was_run_on(size):
    expected = json.loads((GOLDEN / "info.json").read_text())["weights"][f"{size}_turbo"]
    ours = weights(size)
    assert len(ours) == expected["tensors"]
    assert sum(w.double().sum().item() for w in ours.values()) == pytest.approx(expected["sum"], rel=1e-9)
    assert sum(w.double().abs().sum().item() for w in ours.values()) == pytest.approx(expected["abs"], rel=1e-9)


@pytest.mark.parametrize("t", NOISE_LEVELS)
@pytest.mark.parametrize("n_frames", [9, 50, LONG])
@pytest.mark.parametrize("size", SIZES)
def test_velocity_equals_official(size, n_frames, t):
    x = z(f"{size}.dit.x{n_frames}", 2, n_frames, 64)
    context = z(f"{size}.dit.ctx{n_frames}", 2, n_frames, 128)
    states = z(f"{size}.dit.enc", 2, 12, model(size).config.encoder.width)
    v = model(size).velocity(x, torch.full((2,), t), context, states)
    assert_close(v[:, ::10] if n_frames == LONG else v, golden()[f"{size}.dit.T{n_frames}.t{t:.4f}"], SINGLE_FORWARD)


@pytest.mark.parametrize("size", SIZES)
def test_packed_condition_equals_official(size):
    text = Tokens(z(f"{size}.cond.text", 2, 7, 48), torch.arange(7) < torch.tensor([[7], [5]]))
    lyric = Tokens(z(f"{size}.cond.lyric", 2, 300, 48), torch.arange(300) < torch.tensor([[300], [200]]))
    reference = z(f"{size}.cond.ref", 3, 400, 64)
    packed = model(size).encoder(text, lyric, reference, torch.tensor([0, 0, 1]))
    expected_real = golden()[f"{size}.cond.mask"].bool()
    assert torch.equal(packed.attention_mask, expected_real)
    every_third = packed.states[:, ::3] * expected_real[:, ::3, None]
    assert_close(every_third, golden()[f"{size}.cond.states"] * expected_real[:, ::3, None], SINGLE_FORWARD)


@pytest.mark.parametrize("size", SIZES)
def test_codes_and_hints_equal_official(size):
    latents, silence = z(f"{size}.tok.x", 2, 23, 64), z(f"{size}.tok.sil", 1, 100, 64)
    codes = model(size).tokenize(latents, silence)
    assert torch.equal(codes, golden()[f"{size}.tok.indices"].view(2, 5).long())
    vectors = model(size).tokenizer.quantizer.decode(codes, torch.float32)
    assert_close(vectors, golden()[f"{size}.tok.quantized"], SINGLE_FORWARD)
    assert_close(model(size).detokenize(codes, torch.float32), golden()[f"{size}.tok.detok"], SINGLE_FORWARD)


@pytest.mark.parametrize("size", SIZES)
def test_quantizer_alone_equals_official(size):
    quantizer = model(size).tokenizer.quantizer
    codes = quantizer(2 * z(f"{size}.fsq.z", 64, 64))
    assert torch.equal(codes.flatten(), golden()[f"{size}.fsq.indices"].flatten().long())
    assert_close(
        quantizer.decode(codes, torch.float32).flatten(),
        golden()[f"{size}.fsq.quantized"].flatten(),
        SINGLE_FORWARD,
    )
