"""Lets node tests import ComfyUI's modules in this process; they are found from here on, not before."""

import functools
import importlib
from pathlib import Path

import pytest

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
