"""The VAE as a ComfyUI VAE: core's audio nodes and ours use the same object.

Subclasses core's class for what others ask of it, but encodes and decodes with the core's exact tiles:
memory does not grow with length, and no level is changed.
"""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import torch

from ...acestep_core.checkpoints.read import read_vae
from ...acestep_core.constants import AUDIO_CHANNELS, LATENT_CHANNELS, SAMPLE_RATE, SAMPLES_PER_FRAME
from ...acestep_core.models.vae import TILE_FRAMES, Vae
from . import folders, memory, progress


class AceStepVAE(comfy.sd.VAE):
    """Fields as comfy.sd.VAE sets them for an audio VAE; see its __init__ for their meaning."""

    def __init__(self, model: Vae, patcher, dtype: torch.dtype, device: torch.device) -> None:
        self.first_stage_model, self.patcher = model, patcher
        self.vae_dtype, self.device = dtype, device
        self.output_device = memory.intermediate_device()
        self.memory_used_encode = lambda shape, dtype: model.encode_memory_bytes(shape[-1] // SAMPLES_PER_FRAME, dtype)
        self.memory_used_decode = lambda shape, dtype: model.decode_memory_bytes(shape[-1], dtype)
        self.downscale_ratio = self.upscale_ratio = SAMPLES_PER_FRAME
        self.downscale_index_formula = self.upscale_index_formula = None
        self.latent_channels, self.latent_dim, self.output_channels = LATENT_CHANNELS, 1, AUDIO_CHANNELS
        self.audio_sample_rate = SAMPLE_RATE
        self.process_input = self.process_output = lambda audio: audio
        self.working_dtypes = list(memory.COMPUTE_DTYPES)
        self.pad_channel_value = "replicate"
        self.extra_1d_channel = self.format_encoded = self.size = None
        self.disable_offload = self.not_video = self.crop_input = self.handles_tiling = False
        self.model_size()

    def decode(self, samples_in: torch.Tensor, vae_options=None) -> torch.Tensor:
        """Return audio [B, S, 2] of latents [B, 64, T]."""
        return self.decode_tiled(samples_in)

    def decode_tiled(self, samples, tile_x=TILE_FRAMES, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Return audio [B, S, 2] of latents [B, 64, T]; the overlap is the network's own reach."""
        return self.audio(samples, tile_x or TILE_FRAMES).movedim(1, -1)

    def audio(self, samples: torch.Tensor, tile_frames: int = TILE_FRAMES) -> torch.Tensor:
        """Return audio [B, 2, S] of latents [B, 64, T] as it comes from the decoder, with progress."""
        model = self.first_stage_model
        device = memory.load_for(
            self.patcher, model.decode_memory_bytes(samples.shape[-1], self.vae_dtype, tile_frames)
        )
        latents = samples.to(device, self.vae_dtype)
        audio = model.decode_tiled(latents, tile_frames, progress.of_parts(), self.output_device)
        return memory.to_intermediate(audio)

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Return latents [B, 64, T] of audio [B, S, channels]."""
        return self.encode_tiled(pixel_samples)

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """Return latents [B, 64, T] of audio [B, S, channels]; one channel is heard on both sides."""
        audio = pixel_samples.movedim(-1, 1)[:, :AUDIO_CHANNELS].expand(-1, AUDIO_CHANNELS, -1)
        return self.latents(audio, (tile_x or TILE_FRAMES * SAMPLES_PER_FRAME) // SAMPLES_PER_FRAME)

    def latents(self, audio: torch.Tensor, tile_frames: int = TILE_FRAMES) -> torch.Tensor:
        """Return latents [B, 64, T] of audio [B, 2, S] at 48 kHz, with progress."""
        model = self.first_stage_model
        needed = model.encode_memory_bytes(audio.shape[-1] // SAMPLES_PER_FRAME, self.vae_dtype, tile_frames)
        device = memory.load_for(self.patcher, needed)
        latents = model.encode_tiled(audio, max(1, tile_frames), progress.of_parts(), device, self.vae_dtype)
        return memory.to_intermediate(latents)


def load_vae(path: Path) -> AceStepVAE:
    """Return the VAE of a file or folder."""
    return AceStepVAE(*_load(path))


def _load(path: Path) -> tuple[Vae, object, torch.dtype, torch.device]:
    file = read_vae(path, folders.read)
    build, dtype, load_device, offload_device = memory.vae_build()
    model = Vae(file.config, build)
    patcher = memory.patcher(model, load_device, offload_device)
    memory.fill(patcher, model, {name: tensor.to(dtype) for name, tensor in file.state.items()})
    return model, patcher, dtype, load_device


def decode(vae: comfy.sd.VAE, samples: torch.Tensor) -> torch.Tensor:
    """Return audio [B, 2, S] of latents [B, T, 64], with our VAE or one that core loaded.

    Raises ValueError for a VAE that is not for these latents.
    """
    latents = samples.transpose(1, 2)
    if isinstance(vae, AceStepVAE):
        return vae.audio(latents)
    _check_foreign(vae)
    return vae.decode(latents).movedim(-1, 1).float()


def encode(vae: comfy.sd.VAE, waveform: torch.Tensor) -> torch.Tensor:
    """Return latents [B, T, 64] of audio [B, 2, S] at 48 kHz, with our VAE or one that core loaded.

    Ours gives the posterior's mean; core's draws from the posterior, so that no two runs are quite the same.

    Raises ValueError for a VAE that is not for these latents.
    """
    if isinstance(vae, AceStepVAE):
        return vae.latents(waveform).transpose(1, 2)
    _check_foreign(vae)
    return vae.encode(waveform.movedim(1, -1)).transpose(1, 2).float()


def _check_foreign(vae: comfy.sd.VAE) -> None:
    if getattr(vae, "latent_channels", 0) != LATENT_CHANNELS or vae.upscale_ratio != SAMPLES_PER_FRAME:
        raise ValueError('this VAE is not ACE-Step 1.5\'s; load it with "Load ACE-Step VAE"')
