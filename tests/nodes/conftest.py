"""Lets node tests import ComfyUI's modules in this process; they are found from here on, not before."""

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import comfyui
import tiny_models

comfyui.make_importable(cpu=True)
# It and comfy_extras.nodes_latent import each other, which ends only when it comes first.
importlib.import_module("comfy_extras.nodes_post_processing")


@pytest.fixture(autouse=True)
def _inference(inference_mode: None) -> None:
    """ComfyUI runs every prompt in it, and so do tests of its nodes."""


@pytest.fixture(scope="session")
def vae_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny VAE as ComfyUI's file, bf16 as published."""
    path = tmp_path_factory.mktemp("vae") / "ace_1.5_vae.safetensors"
    tiny_models.write_vae_comfy(path)
    return path


@pytest.fixture(scope="module")
def vae(vae_file: Path):
    """The tiny VAE as our loader gives it to the nodes."""
    from acestep_pack.nodes.host import vae as vaes

    return vaes.load_vae(vae_file)


@pytest.fixture(scope="module")
def core_vae(vae_file: Path):
    """The same file as core's VAELoader reads it, but for its width: core knows the released one alone."""
    import comfy.sd
    import comfy.utils

    narrow = functools.partial(comfy.sd.AudioOobleckVAE, channels=tiny_models.VAE.decoder_width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.sd, "AudioOobleckVAE", narrow)
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(vae_file)))


@pytest.fixture(scope="session")
def golden_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], object]:
    """Return a loader of the golden 2B model through our own, as a MODEL in float32: golden_model("base")."""
    from acestep_pack.nodes.host import model as models
    from golden_models import weights, z

    @functools.cache
    def load(variant: str) -> object:
        folder = tmp_path_factory.mktemp(variant)
        (folder / "config.json").write_text(json.dumps({"is_turbo": variant == "turbo"}))
        save_file(weights("2b"), folder / "model.safetensors")
        torch.save(z("gen.silence", 1, 800, 64).transpose(1, 2).contiguous(), folder / "silence_latent.pt")
        with torch.inference_mode():
            return models.load_model(folder, "auto", "fp32")

    return load
