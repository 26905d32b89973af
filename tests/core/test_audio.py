"""Levels and fades of a waveform, and what they must leave alone."""

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.audio.level import fade, normalize_peak

# -1 dBFS, the level the official project writes its files at.
FULL = 10 ** (-1 / 20)


def takes(*peaks: float, n_samples: int = 4_801) -> Tensor:
    """Stereo tones of the given peaks, the right channel at half the left's level."""
    tone = torch.sin(torch.linspace(0, 200, n_samples))
    tone = tone / tone.abs().max()
    return torch.stack([torch.stack((peak * tone, 0.5 * peak * tone)) for peak in peaks])


@pytest.mark.parametrize("peak", [1e-5, 0.1, 1.0, 7.0])
def test_a_take_is_brought_to_its_level_from_below_and_above(peak: float) -> None:
    level = normalize_peak(takes(peak), -1.0).abs().max()
    assert level.item() == pytest.approx(0.8913, abs=1e-4)


def test_each_take_has_its_own_gain_and_keeps_its_balance() -> None:
    loud = normalize_peak(takes(0.01, 5.0), -1.0)
    torch.testing.assert_close(loud.abs().amax(-1), torch.tensor([[FULL, FULL / 2]] * 2))


def test_silence_is_not_amplified() -> None:
    audio = takes(0.0, 1e-7)
    assert torch.equal(normalize_peak(audio, -1.0), audio)


def test_normalising_twice_is_normalising_once() -> None:
    once = normalize_peak(takes(0.3), -1.0)
    torch.testing.assert_close(normalize_peak(once, -1.0), once)


def test_a_level_above_full_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the peak must be 0 dBFS or below, got 0\.5"):
        normalize_peak(takes(1.0), 0.5)


def test_no_fade_changes_no_bit() -> None:
    audio = takes(0.5)
    assert torch.equal(fade(audio, 0, 0), audio)


@pytest.mark.parametrize(("fade_in_s", "fade_out_s"), [(0.05, 0.0), (0.0, 0.05), (0.02, 0.03)])
def test_fades_start_and_end_at_nothing_and_leave_the_middle(fade_in_s: float, fade_out_s: float) -> None:
    audio = torch.ones(1, 2, 9_600)
    faded = fade(audio, fade_in_s, fade_out_s)
    n_in, n_out = round(fade_in_s * 48_000), round(fade_out_s * 48_000)
    assert torch.equal(faded[..., n_in : 9_600 - n_out], audio[..., n_in : 9_600 - n_out])
    if n_in:
        assert faded[0, 0, 0] == 0
        assert (faded[0, 0, :n_in].diff() > 0).all()
    if n_out:
        assert faded[0, 0, -1] == 0
        assert (faded[0, 0, 9_600 - n_out :].diff() < 0).all()


@pytest.mark.parametrize("n_samples", [1, 2, 100])
def test_a_fade_longer_than_the_audio_fades_all_of_it(n_samples: int) -> None:
    faded = fade(torch.ones(1, 2, n_samples), 60.0, 60.0)
    assert faded.shape == (1, 2, n_samples)
    assert faded[..., 0].abs().max() == 0
    assert faded.max() <= 0.25 + 1e-6
