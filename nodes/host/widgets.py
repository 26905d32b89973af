"""Widgets that several nodes have."""

from __future__ import annotations

from comfy_api.v0_0_2 import io


def unit(name: str, default: float, tooltip: str, **more: bool) -> io.Float.Input:
    """Return a widget for a number from 0 to 1, in hundredths. more: optional, advanced."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **more)
