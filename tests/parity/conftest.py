"""Lets parity tests import ComfyUI's modules in this process; they are found from here on, not before."""

import pytest

import comfyui

comfyui.make_importable(cpu=True)


@pytest.fixture(autouse=True)
def _inference(inference_mode: None) -> None:
    """No test here needs a gradient."""
