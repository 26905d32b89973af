"""Audio codes against diffusers, ComfyUI and the quantiser library the official model was trained with."""

import math

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import ResidualFSQ

from acestep_pack.acestep_core.constants import FSQ_LEVELS, N_CODES
from acestep_pack.acestep_core.models.tokenizer import dequantize, quantize
from golden_models import assert_close, model, z
from parity import peers
from parity.peers import ONE_PART, SIZES

pytestmark = pytest.mark.parity

N_VECTORS = 20_000
# Spread evenly over all codes: 7919 and 64,000 share no factor.
CODES = (torch.arange(240) * 7919 % N_CODES).view(2, 120)


@pytest.fixture(scope="module")
def library() -> ResidualFSQ:
    """The library's quantiser with the projections of our 2B model."""
    quantizer = model("2b").tokenizer.quantizer
    peer = ResidualFSQ(dim=64, levels=list(FSQ_LEVELS), num_quantizers=1)
    peer.load_state_dict(quantizer.state_dict(), strict=False)
    assert torch.equal(peer.project_out.weight, quantizer.project_out.weight)
    return peer.eval()


@pytest.mark.parametrize("build", [model, peers.ours_on_comfyui_ops])
@pytest.mark.parametrize("n_frames", [5, 23, 504])
@pytest.mark.parametrize("size", SIZES)
def test_codes_of_latents_equal_diffusers(size, n_frames, build):
    """The last group is filled up with the first frames of silence, not with zeros."""
    latents, silence = z("peer.latents", 2, n_frames, 64), z("peer.silence", 1, 100, 64)
    _, codes = peers.diffusers_tokenizer(size).tokenize(latents, silence)
    assert torch.equal(build(size).tokenize(latents, silence), codes[..., 0])


def test_tail_is_filled_up_with_the_first_frames_of_silence():
    latents, silence = z("peer.latents", 2, 23, 64), z("peer.silence", 1, 100, 64)
    by_hand = torch.cat((latents, silence[:, :2].expand(2, -1, -1)), dim=1)
    assert torch.equal(model("2b").tokenize(latents, silence), model("2b").tokenizer(by_hand))


@pytest.mark.parametrize("build", [model, peers.ours_on_comfyui_ops])
@pytest.mark.parametrize("size", SIZES)
def test_hints_of_codes_equal_diffusers(size, build):
    vectors = peers.diffusers_tokenizer(size).quantizer.get_output_from_indices(CODES)
    hints = peers.diffusers_detokenizer(size)(vectors)
    assert_close(build(size).tokenizer.quantizer.decode(CODES, torch.float32), vectors, ONE_PART)
    assert_close(build(size).detokenize(CODES, torch.float32), hints, ONE_PART)


@pytest.mark.parametrize("size", SIZES)
def test_hints_of_codes_equal_comfyui(size):
    peer = peers.comfyui_model(size)
    hints = peer.detokenizer(peer.tokenizer.quantizer.get_output_from_indices(CODES))
    assert_close(model(size).detokenize(CODES, torch.float32), hints, ONE_PART)


def test_quantizer_equals_the_library_on_random_vectors(library):
    quantizer, x = model("2b").tokenizer.quantizer, 2 * z("peer.vectors", 1, N_VECTORS, 64)
    vectors, codes = library(x)
    assert torch.equal(quantizer(x), codes[..., 0])
    assert_close(quantizer.decode(codes[..., 0], torch.float32), vectors, ONE_PART)


def test_every_code_stands_for_the_librarys_numbers(library):
    ours, theirs = dequantize(torch.arange(N_CODES)), library.layers[0].implicit_codebook
    assert_close(ours, theirs, ONE_PART)
    levels = torch.tensor(FSQ_LEVELS)
    reach = levels / (levels - 1)
    before_the_soft_clamp = reach * torch.atanh(ours / reach)
    assert torch.equal(quantize(before_the_soft_clamp), torch.arange(N_CODES))


def test_bounding_is_a_soft_clamp_then_a_hard_one():
    """ComfyUI takes tanh twice and acestep.cpp once, without the soft clamp: other thresholds."""
    numbers = 1.5 * z("peer.numbers", N_VECTORS, 6)

    def code(row: np.ndarray) -> int:
        value, place = 0, 1
        for number, level in zip(row.tolist(), FSQ_LEVELS, strict=True):
            reach = level / (level - 1)
            bounded = min(1.0, max(-1.0, reach * math.tanh(number / reach)))
            value += place * math.floor((level - 1) * (bounded + 1) / 2 + 0.5)
            place *= level
        return value

    assert quantize(numbers).tolist() == [code(row) for row in numbers.numpy()]


@pytest.mark.parametrize(
    ("numbers", "digits", "code"),
    [
        ((0, 0, 0, 0, 0, 0), (4, 4, 4, 2, 2, 2), 32036),
        ((1.2, -1.2, 0.5, 0.9, -0.9, 0.3), (7, 0, 5, 4, 0, 3), 40775),
        ((5, -5, 0.1, -0.1, 5, -5), (7, 0, 4, 2, 4, 0), 11527),
        ((9, -9, -9, -9, 9, 0), (7, 0, 0, 0, 4, 2), 35847),
        ((9, 9, 9, 9, 9, 9), (7, 7, 7, 4, 4, 4), 63999),
    ],
)
def test_known_numbers_have_known_codes(numbers, digits, code):
    assert quantize(torch.tensor(numbers)).item() == code
    expected = [2 * digit / (level - 1) - 1 for digit, level in zip(digits, FSQ_LEVELS, strict=True)]
    assert dequantize(torch.tensor(code)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("code", [-1, N_CODES])
def test_code_out_of_range_is_refused_not_clamped(code):
    with pytest.raises(ValueError, match=f"audio code {code} is outside 0..63999"):
        dequantize(torch.tensor([5, code]))
