"""The laws of the VAE: lengths, exact tiling, determinism, and reading its files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from acestep_pack.acestep_core.checkpoints.vae_keys import (
    WEIGHT_NORM_PARAMETRIZATION,
    fold_weight_norm,
    from_comfyui_keys,
)
from acestep_pack.acestep_core.models import vae
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig
from golden_models import assert_close

TINY = VaeConfig(encoder_width=8, decoder_width=8)
HOP = TINY.hop
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def tiny() -> Vae:
    """A VAE with random weights, snakes included; gentle ones, so that rounding does not grow on the way."""
    generator = torch.Generator().manual_seed(1)
    model = Vae(TINY)
    for name, parameter in model.named_parameters():
        fan_in = max(1, parameter[0].numel())
        scale = 0.3 if name.endswith(("alpha", "beta")) else 0.5 * fan_in**-0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU cut every stage of even short inputs into many pieces."""
    monkeypatch.setattr(vae, "CPU_PIECE_ELEMENTS", 1 << 12)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_released_strides_reach_nine_frames_in_decode_and_seven_in_encode() -> None:
    assert VaeConfig().hop == 1920
    assert VaeConfig().decode_margin == 9
    assert VaeConfig().encode_margin == 7


@pytest.mark.parametrize("n_frames", [1, 2, 9, 31])
def test_a_frame_decodes_to_1920_samples(tiny: Vae, n_frames: int) -> None:
    assert tiny.decode(randn(1, 64, n_frames)).shape == (1, 2, 1920 * n_frames)


@pytest.mark.parametrize(
    ("n_samples", "n_frames"), [(1920, 1), (3839, 1), (3840, 2), (HOP * 9 + 7, 9), (HOP * 10 - 1, 9)]
)
def test_audio_encodes_to_its_whole_frames(tiny: Vae, n_samples: int, n_frames: int) -> None:
    assert tiny.encode(randn(1, 2, n_samples)).shape == (1, 64, n_frames)


def test_samples_past_the_last_whole_frame_change_only_the_frames_in_reach(tiny: Vae) -> None:
    audio = randn(1, 2, HOP * 12 + 900)
    with_rest, without = tiny.encode(audio), tiny.encode(audio[..., : HOP * 12])
    reach = TINY.encode_margin
    assert_close(with_rest[..., :-reach], without[..., :-reach], TOLERANCE)
    assert not torch.allclose(with_rest[..., -1], without[..., -1])


@pytest.mark.parametrize("n_frames", [1, 8, 31, 40])
@pytest.mark.parametrize("tile_frames", [1, 5, 13, 30, 64])
def test_tiled_decode_equals_whole_decode(tiny: Vae, n_frames: int, tile_frames: int) -> None:
    latents = randn(1, 64, n_frames)
    assert_close(tiny.decode_tiled(latents, tile_frames), tiny.decode(latents), TOLERANCE)


@pytest.mark.parametrize("n_samples", [HOP, HOP * 20 + 333, HOP * 31])
@pytest.mark.parametrize("tile_frames", [1, 5, 13, 64])
def test_tiled_encode_equals_whole_encode(tiny: Vae, n_samples: int, tile_frames: int) -> None:
    audio = randn(1, 2, n_samples)
    assert_close(tiny.encode_tiled(audio, tile_frames), tiny.encode(audio), TOLERANCE)


def test_a_margin_one_frame_shorter_would_show_in_the_tiles(tiny: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = randn(1, 64, 40).double()
    whole = tiny.double().decode(latents)
    assert torch.allclose(tiny.decode_tiled(latents, 10), whole, rtol=0, atol=1e-11)
    monkeypatch.setattr(VaeConfig, "decode_margin", 8)
    short = tiny.decode_tiled(latents, 10)
    tiny.float()
    assert (short - whole).abs().max() > 1e-9


@pytest.mark.usefixtures("small_pieces")
def test_pieces_for_the_cpu_change_nothing(tiny: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, audio = randn(1, 64, 21), randn(1, 2, HOP * 21 + 801)
    in_pieces = tiny.decode(latents), tiny.encode(audio)
    monkeypatch.setattr(vae, "CPU_PIECE_ELEMENTS", 1 << 40)
    assert_close(in_pieces[0], tiny.decode(latents), TOLERANCE)
    assert_close(in_pieces[1], tiny.encode(audio), TOLERANCE)


def test_the_same_input_gives_the_same_bits(tiny: Vae) -> None:
    latents, audio = randn(1, 64, 7), randn(1, 2, HOP * 7)
    assert torch.equal(tiny.decode(latents), tiny.decode(latents))
    assert torch.equal(tiny.encode(audio), tiny.encode(audio))


def test_an_item_of_a_batch_equals_the_item_alone(tiny: Vae) -> None:
    latents, audio = randn(3, 64, 11), randn(3, 2, HOP * 11)
    assert torch.equal(tiny.decode(latents)[2:], tiny.decode(latents[2:]))
    assert torch.equal(tiny.decode_tiled(latents, 4)[1:2], tiny.decode_tiled(latents[1:2], 4))
    assert torch.equal(tiny.encode(audio)[:1], tiny.encode(audio[:1]))


def test_inputs_are_left_as_they_were(tiny: Vae) -> None:
    latents, audio = randn(1, 64, 12), randn(1, 2, HOP * 12)
    tiny.decode(latents)
    tiny.encode(audio)
    assert torch.equal(latents, randn(1, 64, 12))
    assert torch.equal(audio, randn(1, 2, HOP * 12))


def test_every_tile_is_reported_and_an_exception_from_the_report_ends_the_work(tiny: Vae) -> None:
    reports: list[tuple[int, int]] = []
    tiny.decode_tiled(randn(2, 64, 11), 4, on_tile=lambda done, total: reports.append((done, total)))
    assert reports == [(done, 6) for done in range(1, 7)]

    def cancel(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tiny.encode_tiled(randn(1, 2, HOP * 11), 4, on_tile=cancel)


def test_tiled_memory_is_flat_in_duration() -> None:
    model = Vae(VaeConfig(), vae.Build(device="meta"))
    long, longer = (model.decode_memory_bytes(n, torch.bfloat16) for n in (1000, 15000))
    assert long == longer
    assert model.decode_memory_bytes(100, torch.bfloat16) < long / 4
    assert model.encode_memory_bytes(1000, torch.float32) == model.encode_memory_bytes(15000, torch.float32)


@pytest.mark.parametrize("shape", [(1, 63, 10), (64, 10), (1, 64, 0), (0, 64, 10)])
def test_latents_of_another_shape_are_refused(tiny: Vae, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the VAE takes latents as"):
        tiny.decode(torch.zeros(shape))


def test_audio_shorter_than_a_frame_or_mono_is_refused(tiny: Vae) -> None:
    for shape in ((1, 2, 1919), (1, 1, 9600)):
        with pytest.raises(ValueError, match="the VAE takes audio as"):
            tiny.encode(torch.zeros(shape))


def test_a_tile_of_no_frames_is_refused(tiny: Vae) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        tiny.decode_tiled(randn(1, 64, 5), 0)


# Files


def weight_normed(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with every weight split as torch's parametrization does it."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            parametrizations.weight_norm(module)
            module.parametrizations.weight.original0.data.mul_(1.5)
    return model.state_dict()


def old_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    new_g, new_v = WEIGHT_NORM_PARAMETRIZATION
    return {key.replace(new_g, "weight_g").replace(new_v, "weight_v"): t for key, t in state_dict.items()}


@pytest.mark.parametrize("rename", [dict, old_names])
def test_folded_weight_norm_equals_torchs_own_weights(rename) -> None:
    model = Vae(TINY)
    folded = fold_weight_norm(rename(weight_normed(model)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            torch.testing.assert_close(folded[f"{name}.weight"], module.weight, rtol=1e-6, atol=1e-7)
    assert folded.keys() == Vae(TINY).state_dict().keys()


def test_folding_plain_weights_changes_nothing(tiny: Vae) -> None:
    folded = fold_weight_norm(tiny.state_dict())
    assert all(torch.equal(folded[key], t) for key, t in tiny.state_dict().items())
    assert folded.keys() == tiny.state_dict().keys()


def test_half_a_weight_norm_pair_is_refused() -> None:
    state_dict = old_names(weight_normed(Vae(TINY)))
    del state_dict["decoder.block.2.conv_t1.weight_v"]
    with pytest.raises(ValueError, match=r'only half of the weight "decoder\.block\.2\.conv_t1\.weight"'):
        fold_weight_norm(state_dict)


def comfyui_layers(config: VaeConfig) -> nn.Module:
    """Return modules laid out as stable-audio-tools numbers them."""

    def sequence(*layers: nn.Module) -> nn.Module:
        module = nn.Module()
        module.layers = nn.ModuleList(layers)
        return module

    def snake(width: int) -> nn.Module:
        module = nn.Module()
        module.alpha, module.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        return module

    def unit(width: int) -> nn.Module:
        return sequence(snake(width), nn.Conv1d(width, width, 7), snake(width), nn.Conv1d(width, width, 1))

    def units(width: int) -> list[nn.Module]:
        return [unit(width) for _ in range(3)]

    encoder = [1, *config.multiples]
    widths = [config.encoder_width * multiple for multiple in encoder]
    down = [
        sequence(*units(a), snake(a), nn.Conv1d(a, b, 2 * s))
        for a, b, s in zip(widths, widths[1:], config.strides, strict=False)
    ]
    up = [
        sequence(snake(b), nn.ConvTranspose1d(b, a, 2 * s), *units(a))
        for a, b, s in zip(widths, widths[1:], config.strides, strict=False)
    ][::-1]
    root = nn.Module()
    root.encoder = sequence(nn.Conv1d(2, widths[0], 7), *down, snake(widths[-1]), nn.Conv1d(widths[-1], 128, 3))
    root.decoder = sequence(nn.Conv1d(64, widths[-1], 7), *up, snake(widths[0]), nn.Conv1d(widths[0], 2, 7, bias=False))
    return root


def test_comfyui_names_map_onto_exactly_our_keys_and_shapes() -> None:
    ours = from_comfyui_keys(comfyui_layers(TINY).state_dict())
    expected = Vae(TINY).state_dict()
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in expected.items()}


def test_names_that_are_not_comfyuis_pass_through(tiny: Vae) -> None:
    assert from_comfyui_keys(tiny.state_dict()).keys() == tiny.state_dict().keys()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        VaeConfig(encoder_width=4, decoder_width=6),
        VaeConfig(8, 8, (1, 2, 2), (6, 16, 20), latent_channels=32),
    ],
)
def test_sizes_are_read_from_shapes(config: VaeConfig) -> None:
    assert VaeConfig.from_state_dict(Vae(config).state_dict()) == config


@pytest.mark.parametrize(
    "gone",
    [
        "encoder.conv1.",
        "encoder.block.4",
        "encoder.block.2.conv1",
        "decoder.block.3",
        "decoder.conv2",
        "decoder.snake1.beta",
    ],
)
def test_a_truncated_file_is_refused(tiny: Vae, gone: str) -> None:
    rest = {key: t for key, t in tiny.state_dict().items() if not key.startswith(gone)}
    with pytest.raises(ValueError, match=r"truncated|only part of one"):
        VaeConfig.from_state_dict(rest)


def test_another_models_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not an ACE-Step VAE"):
        VaeConfig.from_state_dict({"encoder.conv1.weight": torch.zeros(8, 8), "model.norm.weight": torch.zeros(8)})


def test_the_vae_of_stable_audio_is_refused() -> None:
    other = Vae(VaeConfig(8, 8, strides=(2, 4, 4, 8, 8)))
    with pytest.raises(ValueError, match="2048 samples a frame"):
        VaeConfig.from_state_dict(other.state_dict())
