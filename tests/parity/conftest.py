"""Lets parity tests import ComfyUI's modules in this process; they are found from here on, not before."""

import comfyui

comfyui.make_importable(cpu=True)
