"""The nodes as they run on a graphics card, on one that is pretended, however ComfyUI was told to use it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import pytest
import torch
from torch import Tensor

import tiny_models
from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.lora.files import read_adapter
from acestep_pack.acestep_core.lora.fit import Strengths, fit
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from acestep_pack.nodes.audio import AceStepDetokenize, AceStepEncodeAudio, AceStepReference, AceStepTokenize
from acestep_pack.nodes.decode import AceStepDecode
from acestep_pack.nodes.encode import AceStepEncode
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host import vae as vaes
from acestep_pack.nodes.host.latents import recorded_latent, recording_of
from acestep_pack.nodes.host.lora_patch import patched, shapes_of
from acestep_pack.nodes.region import AceStepRegion
from acestep_pack.nodes.sample import AceStepSample
from acestep_pack.nodes.score import AceStepPickBest, AceStepScoreLyrics
from acestep_pack.nodes.tasks import AceStepCover, AceStepRepaint
from card import CARD, CPU, Card, put
from reader import Reader

N_FRAMES = 250
GIB = 2**30
SONG = SongSpec("slow piano ballad", "[Verse]\nWalking home in rain\nHold the night", "en", duration_s=N_FRAMES / 25)


@pytest.fixture(params=["as usual", "--gpu-only", "--novram"])
def between_nodes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.device:
    """Give ComfyUI a card of 8 GiB, and return where it keeps what travels between nodes."""
    where = CARD if request.param == "--gpu-only" else CPU
    vram = mm.VRAMState.NO_VRAM if request.param == "--novram" else mm.VRAMState.NORMAL_VRAM
    told = {
        "get_torch_device": CARD,
        "vae_device": CARD,
        "unet_offload_device": CPU,
        "vae_offload_device": CPU,
        "intermediate_device": where,
        "vae_dtype": torch.bfloat16,
        "unet_manual_cast": None,
        "is_device_cuda": False,  # asked before calls that need a real one
        "cuda_device_context": contextlib.nullcontext(),
        "soft_empty_cache": None,
    }
    for name, value in told.items():
        monkeypatch.setattr(mm, name, lambda *_args, value=value, **_kwargs: value)
    for name in ("get_free_memory", "get_total_memory"):
        monkeypatch.setattr(mm, name, lambda _device=None, *both, **also: (8 * GIB, 0) if both or also else 8 * GIB)
    monkeypatch.setattr(mm, "vram_state", vram)
    monkeypatch.setattr(mm, "current_loaded_models", [])  # or later tests would find models on the card
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return where


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_dit_official(folder / "xl", "xl-turbo")
    tiny_models.write_vae_comfy(folder / "vae.safetensors")
    tiny_models.write_lora(folder / "lora.safetensors", "xl-turbo", "singer")
    return folder


def test_songs_of_every_kind_are_made_on_the_card(between_nodes: torch.device, files: Path) -> None:
    with Card():
        vae, model = vaes.load_vae(files / "vae.safetensors"), models.load_model(files / "xl", "auto", "bf16")
        found = fit(read_adapter(files / "lora.safetensors"), shapes_of(model))
        model = patched(model, found, Strengths(1.0))
        audio = {"waveform": recording().to(between_nodes), "sample_rate": SAMPLE_RATE}
        (recorded,) = AceStepEncodeAudio.execute(vae, audio).result
        (reference,) = AceStepReference.execute(vae, audio).result
        (codes,) = AceStepTokenize.execute(model, recorded).result
        (hints,) = AceStepDetokenize.execute(model, codes).result
        (mask,) = AceStepRegion.execute(recorded, 2.0, 4.0, "seconds", 0.5, False).result
        assert recorded["samples"].device == hints["samples"].device == between_nodes
        for task in (
            None,
            AceStepRepaint.execute(recorded, mask, "balanced", 0.5).result[0],
            AceStepCover.execute(recorded, 0.5, 0.5, True, "custom").result[0],
        ):
            codes_or_none = AudioCodes() if task else codes
            made = AceStepEncode.execute(
                Reader(tiny_models.TEXT_SHAPE.width), SONG, 1.0, codes_or_none, task, reference
            ).result
            (takes,) = AceStepSample.execute(model, *made, 7, 2, 2, 0.0, 2.0).result
            assert takes["samples"].device == between_nodes
            scores, _ = AceStepScoreLyrics.execute(model, made[0], takes).result
            best = AceStepPickBest.execute(takes, scores, 1, 1.0, 0.0, 0.0).result[0]
            (sound,) = AceStepDecode.execute(vae, best, True, -1.0, 0.1, 0.1, task).result
            assert bool(torch.isfinite(sound["waveform"]).all())
        # Without room for them, layers stay where they were and bring their weights over when they run.
        devices = {parameter.device for parameter in model.model.diffusion_model.decoder.layers.parameters()}
        assert devices == {CPU if mm.vram_state == mm.VRAMState.NO_VRAM else CARD}


def test_a_recording_is_known_again_when_its_latent_has_been_moved() -> None:
    """As a node may leave it that works on the CPU whatever ComfyUI's --gpu-only says."""
    made = recorded_latent(torch.randn(1, N_FRAMES, 64), recording())
    with Card():
        moved = {**made, "samples": put(made["samples"])}
        assert torch.equal(recording_of(moved), recording())
        assert recording_of({**moved, "samples": moved["samples"] + 1}) is None


def recording() -> Tensor:
    return 0.1 * torch.randn(1, 2, N_FRAMES * SAMPLES_PER_FRAME, generator=torch.Generator().manual_seed(1))
