"""Our VAE in ComfyUI's audio nodes, and against ComfyUI's own reading of the same file."""

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_audio import VAEDecodeAudio, VAEDecodeAudioTiled, VAEEncodeAudio
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep_pack.nodes.decode import AceStepDecode
from acestep_pack.nodes.host.latents import latent
from golden_models import assert_close
from sounds import music

CHANNELS = 64


def latents(n_frames: int, n_items: int = 1) -> Tensor:
    return torch.randn(n_items, CHANNELS, n_frames, generator=torch.Generator().manual_seed(n_frames))


def quiet(audio: Tensor) -> Tensor:
    """Return audio as core's decode node levels it."""
    return audio / (5 * audio.std(dim=(1, 2), keepdim=True)).clamp(min=1)


@pytest.mark.parametrize(("n_frames", "n_items"), [(1, 1), (25, 1), (300, 2)])
def test_core_decodes_with_our_vae_at_48_khz_stereo(vae, n_frames: int, n_items: int) -> None:
    given = latents(n_frames, n_items)
    (audio,) = VAEDecodeAudio.execute(vae, {"samples": given, "type": "audio"}).result
    assert audio["sample_rate"] == SAMPLE_RATE
    assert audio["waveform"].shape == (n_items, 2, n_frames * SAMPLES_PER_FRAME)
    assert_close(audio["waveform"], quiet(vae.audio(given)), 1e-6)


@pytest.mark.parametrize(("tile_size", "overlap"), [(32, 8), (64, 0), (512, 64)])
def test_core_decodes_in_tiles_of_any_size_without_a_seam(vae, tile_size: int, overlap: int) -> None:
    given = {"samples": latents(150), "type": "audio"}
    whole, tiled = (
        node.execute(vae, given, *sizes).result[0]["waveform"]
        for node, sizes in ((VAEDecodeAudio, ()), (VAEDecodeAudioTiled, (tile_size, overlap)))
    )
    assert_close(tiled, whole, 1e-5)


@pytest.mark.parametrize("n_frames", [1, 10, 150])
def test_a_decode_equals_that_of_cores_own_vae(vae, core_vae, n_frames: int) -> None:
    given = latents(n_frames)
    assert_close(vae.decode(given), core_vae.decode(given), 1e-4)


def test_an_encode_draws_nothing(vae) -> None:
    heard = music(SAMPLE_RATE).movedim(1, -1)
    assert torch.equal(vae.encode(heard), vae.encode(heard))


@pytest.mark.parametrize("sample_rate", [16_000, 44_100, 48_000, 96_000])
def test_core_encodes_any_sample_rate_to_25_frames_a_second(vae, sample_rate: int) -> None:
    audio = {"waveform": music(2 * sample_rate), "sample_rate": sample_rate}
    (encoded,) = VAEEncodeAudio.execute(vae, audio).result
    assert encoded["samples"].shape == (1, CHANNELS, 50)
    assert torch.isfinite(encoded["samples"]).all()


def test_mono_is_heard_on_both_sides(vae) -> None:
    mono = music(SAMPLE_RATE, n_channels=1)
    one, two = (
        VAEEncodeAudio.execute(vae, {"waveform": waveform, "sample_rate": SAMPLE_RATE}).result[0]["samples"]
        for waveform in (mono, mono.expand(-1, 2, -1))
    )
    assert torch.equal(one, two)


def test_each_item_of_a_batch_is_encoded_and_decoded_by_itself(vae) -> None:
    audio = torch.cat((music(SAMPLE_RATE), music(SAMPLE_RATE).flip(1)))
    encoded = vae.encode(audio.movedim(1, -1))
    assert_close(encoded[1:], vae.encode(audio[1:].movedim(1, -1)), 1e-5)
    assert_close(vae.decode(encoded)[1:], vae.decode(encoded[1:]), 1e-5)


def test_the_input_of_a_decode_or_encode_is_left_as_it_was(vae) -> None:
    given, heard = latents(30), music(SAMPLE_RATE).movedim(1, -1)
    kept = given.clone(), heard.clone()
    vae.decode(given)
    vae.encode(heard)
    assert torch.equal(given, kept[0])
    assert torch.equal(heard, kept[1])


# Our own node.


def decode(vae, samples: Tensor, normalize: bool = True, peak_dbfs: float = -1.0, fades: float = 0.0) -> Tensor:
    value = latent(samples.transpose(1, 2), ())
    return AceStepDecode.execute(vae, value, normalize, peak_dbfs, fades, fades).result[0]["waveform"]


@pytest.mark.parametrize("peak_dbfs", [-1.0, -12.0, 0.0])
def test_our_decode_brings_each_take_to_its_peak(vae, peak_dbfs: float) -> None:
    peaks = decode(vae, latents(40, 3), peak_dbfs=peak_dbfs).abs().amax((1, 2))
    torch.testing.assert_close(peaks, torch.full((3,), 10 ** (peak_dbfs / 20)))


def test_our_decode_without_normalize_is_the_decoder_alone(vae) -> None:
    assert torch.equal(decode(vae, latents(40), normalize=False), vae.audio(latents(40)))


def test_our_decode_takes_a_vae_that_core_loaded(vae, core_vae) -> None:
    assert_close(decode(core_vae, latents(40)), decode(vae, latents(40)), 1e-4)


def test_our_decode_fades_both_ends(vae) -> None:
    faded, plain = decode(vae, latents(40), fades=0.2), decode(vae, latents(40))
    n_samples = SAMPLE_RATE // 5
    assert faded[..., [0, -1]].abs().max() == 0
    assert torch.equal(faded[..., n_samples:-n_samples], plain[..., n_samples:-n_samples])


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (torch.zeros(1, 4, 64, 64), r"this latent is \(1, 4, 64, 64\), ACE-Step 1.5 needs \[takes, 64, frames\]"),
        (torch.zeros(1, 8, 100), "this latent is"),
        (torch.zeros(0, 64, 100), "this latent is empty"),
        (torch.zeros(1, 64, 0), "this latent is empty"),
        (torch.full((1, 64, 9), float("nan")), "this latent holds NaN or infinity"),
        (torch.full((1, 64, 9), float("inf")), "this latent holds NaN or infinity"),
    ],
)
def test_a_latent_that_is_none_of_ours_is_refused(vae, samples: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AceStepDecode.execute(vae, {"samples": samples}, True, -1.0, 0.0, 0.0)


def test_a_vae_of_another_model_is_refused() -> None:
    pixels = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"this VAE is not ACE-Step 1\.5's"):
        decode(pixels, latents(10))
