"""The 30 seconds of a reference against those that diffusers' pipeline encodes."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AceStepPipeline
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE
from acestep_pack.acestep_core.pipeline.reference import excerpt

pytestmark = pytest.mark.parity


def diffusers_excerpt(waveform: Tensor) -> Tensor:
    """Return what diffusers hands its VAE [1, 2, S] of one recording [2, S]."""
    heard = []

    def encode(audio: Tensor) -> SimpleNamespace:
        heard.append(audio)
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: torch.zeros(1, 64, 750)))

    vae = SimpleNamespace(dtype=torch.float32, encode=encode)
    pipeline = SimpleNamespace(sample_rate=SAMPLE_RATE, vae=vae)
    AceStepPipeline.prepare_reference_audio_latents(pipeline, waveform, 1, torch.device("cpu"), torch.float32)
    return heard[0]


@pytest.mark.parametrize("seconds", [0.3, 7.77, 10, 19.999, 29.99, 30, 30.01, 61.3, 240])
def test_the_same_30_s_are_heard_as_by_diffusers(seconds: float) -> None:
    waveform = torch.randn(2, int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(3))
    assert torch.equal(excerpt(waveform[None]), diffusers_excerpt(waveform))
