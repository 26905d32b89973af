"""Lets node tests import ComfyUI's modules in this process; they are found from here on, not before."""

from collections.abc import Iterator

import pytest
import torch

import comfyui

comfyui.make_importable(cpu=True)


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """ComfyUI runs every prompt in it, and so do tests of its nodes."""
    with torch.inference_mode():
        yield
