"""The VAE against diffusers' and ComfyUI's on shared random weights, read through our own loaders."""

from __future__ import annotations

import importlib

import pytest
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

import comfyui
from acestep_pack.acestep_core.checkpoints.vae_keys import fold_weight_norm, from_comfyui_keys
from acestep_pack.acestep_core.models import vae
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig
from golden_models import assert_close

pytestmark = pytest.mark.parity

# diffusers' encoder ends in encoder_width channels, which must be mean and scale.
TINY = VaeConfig(encoder_width=16, decoder_width=16, latent_channels=8)
TOLERANCE = 1e-5
LENGTHS = [1, 2, 9, 31]


def with_random_weights(model: nn.Module) -> nn.Module:
    """Fill weight norm's two parts, biases and snakes alike, none at a neutral value; gently, or rounding grows."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_magnitude = name.endswith(("weight_g", "original0"))
        parameter.data = 0.5 + 0.1 * noise if is_magnitude else 0.3 * noise
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def diffusers_vae() -> nn.Module:
    config = {
        "encoder_hidden_size": TINY.encoder_width,
        "decoder_channels": TINY.decoder_width,
        "decoder_input_channels": TINY.latent_channels,
        "downsampling_ratios": list(TINY.strides),
        "channel_multiples": list(TINY.multiples),
    }
    return with_random_weights(AutoencoderOobleck(**config))


@pytest.fixture(scope="module")
def comfyui_vae() -> nn.Module:
    comfyui.make_importable(cpu=True)
    module = importlib.import_module("comfy.ldm.audio.autoencoder")
    return with_random_weights(
        module.AudioOobleckVAE(channels=TINY.encoder_width, latent_dim=TINY.latent_channels, strides=list(TINY.strides))
    )


def ours(state_dict: dict[str, Tensor]) -> Vae:
    state_dict = fold_weight_norm(from_comfyui_keys(state_dict))
    model = Vae(VaeConfig.from_state_dict(state_dict))
    model.load_state_dict(state_dict)
    return model


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_decode_equals_diffusers(diffusers_vae: nn.Module, n_frames: int) -> None:
    latents = randn(2, TINY.latent_channels, n_frames)
    assert_close(ours(diffusers_vae.state_dict()).decode(latents), diffusers_vae.decode(latents).sample, TOLERANCE)


@pytest.mark.parametrize("n_samples", [1920, 3839, 9 * 1920 + 1001, 31 * 1920])
def test_encode_equals_diffusers(diffusers_vae: nn.Module, n_samples: int) -> None:
    audio = randn(2, 2, n_samples)
    posterior = ours(diffusers_vae.state_dict()).posterior(audio)
    expected = diffusers_vae.encode(audio).latent_dist
    assert_close(posterior.mean, expected.mean, TOLERANCE)
    assert_close(posterior.std, expected.std, TOLERANCE)


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_decode_equals_comfyui(comfyui_vae: nn.Module, n_frames: int) -> None:
    latents = randn(2, TINY.latent_channels, n_frames)
    assert_close(ours(comfyui_vae.state_dict()).decode(latents), comfyui_vae.decode(latents), TOLERANCE)


@pytest.mark.parametrize("n_samples", [1920, 3839, 9 * 1920 + 1001, 31 * 1920])
def test_encode_equals_comfyui(comfyui_vae: nn.Module, n_samples: int) -> None:
    audio = randn(2, 2, n_samples)
    expected, _ = comfyui_vae.encoder(audio).chunk(2, dim=1)  # its encode draws from the posterior
    assert_close(ours(comfyui_vae.state_dict()).encode(audio), expected, TOLERANCE)


def test_tiles_and_pieces_stay_equal_to_diffusers(diffusers_vae: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "CPU_PIECE_ELEMENTS", 1 << 13)
    model = ours(diffusers_vae.state_dict())
    latents, audio = randn(1, TINY.latent_channels, 47), randn(1, 2, 47 * 1920 + 77)
    assert_close(model.decode_tiled(latents, 13), diffusers_vae.decode(latents).sample, TOLERANCE)
    assert_close(model.encode_tiled(audio, 13), diffusers_vae.encode(audio).latent_dist.mean, TOLERANCE)


def test_comfyuis_operations_give_the_same(diffusers_vae: nn.Module) -> None:
    comfyui.make_importable(cpu=True)
    manual_cast = importlib.import_module("comfy.ops").manual_cast
    state_dict = fold_weight_norm(diffusers_vae.state_dict())
    model = Vae(TINY, vae.Build(ops=manual_cast))
    model.load_state_dict(state_dict)
    latents, audio = randn(1, TINY.latent_channels, 12), randn(1, 2, 12 * 1920)
    assert_close(model.decode(latents), diffusers_vae.decode(latents).sample, TOLERANCE)
    assert_close(model.encode(audio), diffusers_vae.encode(audio).latent_dist.mean, TOLERANCE)
