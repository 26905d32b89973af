"""A recording on its way in: what changes, what must not, and what is refused."""

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.audio.recording import recording, whole_frames
from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME


def tone(n_samples: int, n_channels: int = 2, n_items: int = 1, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """440 Hz at half of full scale, other channels and items softer."""
    t = torch.arange(n_samples) / sample_rate
    gains = 0.5 / torch.arange(1, n_items * n_channels + 1).view(n_items, n_channels, 1)
    return gains * torch.sin(2 * torch.pi * 440 * t)


@pytest.mark.parametrize("n_samples", [SAMPLES_PER_FRAME, 1_921, 48_000])
@pytest.mark.parametrize("n_items", [1, 3])
def test_48_khz_stereo_comes_back_bit_by_bit(n_samples: int, n_items: int) -> None:
    given = tone(n_samples, n_items=n_items)
    assert torch.equal(recording(given, SAMPLE_RATE), given)


def test_full_scale_itself_is_not_touched() -> None:
    given = tone(4_800)
    given[0, 0, 7], given[0, 1, 8] = 1.0, -1.0
    assert torch.equal(recording(given, SAMPLE_RATE), given)


def test_only_what_is_above_full_scale_is_cut_off() -> None:
    given = 3 * tone(4_800)
    kept = given.clone()
    heard = recording(given, SAMPLE_RATE)
    assert torch.equal(heard, given.clamp(-1, 1))
    assert torch.equal(given, kept)


@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
def test_mono_is_the_same_on_both_sides(sample_rate: int) -> None:
    mono = tone(sample_rate, n_channels=1, n_items=2)
    heard = recording(mono, sample_rate)
    assert heard.shape == (2, 2, SAMPLE_RATE)
    assert torch.equal(heard[:, 0], heard[:, 1])
    assert torch.equal(heard, recording(mono.repeat(1, 2, 1), sample_rate))


@pytest.mark.parametrize("sample_rate", [8_000, 11_025, 22_050, 32_000, 44_100, 96_000, 192_000])
def test_any_rate_becomes_48_khz_of_the_same_length_and_pitch(sample_rate: int) -> None:
    heard = recording(tone(sample_rate, sample_rate=sample_rate), sample_rate)
    assert heard.shape == (1, 2, SAMPLE_RATE)
    assert heard.dtype == torch.float32
    middle = slice(1_000, -1_000)  # the ends know no sound beyond themselves
    torch.testing.assert_close(heard[..., middle], tone(SAMPLE_RATE)[..., middle], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("n_samples", "expected"), [(44_100, 48_000), (44_101, 48_002), (1_765, 1_922)])
def test_a_resampled_recording_loses_no_tail(n_samples: int, expected: int) -> None:
    assert recording(tone(n_samples, sample_rate=44_100), 44_100).shape[-1] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    given = tone(4_800).to(dtype)
    heard = recording(given, SAMPLE_RATE)
    assert heard.dtype == torch.float32
    assert torch.equal(heard, given.float())


@pytest.mark.parametrize(
    ("waveform", "sample_rate", "sentence"),
    [
        (tone(48_000, n_channels=8), 48_000, "this audio has 8 channels; mix it down to stereo first"),
        (torch.zeros(1, 2, 48_000), 48_000, "this audio is silent"),
        (tone(48_000) * 1e-7, 44_100, "this audio is silent"),
        (tone(48_000, n_items=2) * torch.tensor([1.0, 0.0])[:, None, None], 48_000, "item 2 of this audio is silent"),
        (tone(48_000).index_fill(2, torch.tensor([9]), float("nan")), 48_000, "this audio holds NaN or infinity"),
        (tone(48_000).index_fill(2, torch.tensor([9]), float("nan")), 44_100, "this audio holds NaN or infinity"),
        (tone(48_000).index_fill(2, torch.tensor([9]), float("inf")), 48_000, "this audio holds NaN or infinity"),
        (tone(SAMPLES_PER_FRAME - 1), 48_000, r"this audio lasts 0\.03998 s, less than one latent frame of 0\.04 s"),
        (tone(200), 8_000, r"this audio lasts 0\.025 s, less than one"),
        (torch.zeros(1, 2, 0), 48_000, r"this audio is \[1, 2, 0\], it must be \[items, channels, samples\]"),
        (torch.zeros(2, 48_000), 48_000, r"this audio is \[2, 48000\]"),
        (tone(48_000), 0, "this audio has a sample rate of 0"),
        (tone(48_000), 47_999, "this audio has 47999 samples a second, which have too little in common with 48000"),
    ],
)
def test_what_cannot_be_music_is_refused_in_one_sentence(waveform: Tensor, sample_rate: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recording(waveform, sample_rate)


def test_an_error_calls_the_audio_by_its_name() -> None:
    with pytest.raises(ValueError, match="the reference is silent; use a recording that can be heard"):
        recording(torch.zeros(1, 1, 48_000), SAMPLE_RATE, "the reference")


@pytest.mark.parametrize(("n_samples", "n_frames"), [(1_920, 1), (1_921, 2), (3_839, 2), (3_840, 2), (48_000, 25)])
def test_a_tail_is_filled_up_with_zeros_to_a_whole_frame(n_samples: int, n_frames: int) -> None:
    given = tone(n_samples)
    filled = whole_frames(given)
    assert filled.shape[-1] == n_frames * SAMPLES_PER_FRAME
    assert torch.equal(filled[..., :n_samples], given)
    assert not filled[..., n_samples:].any()
