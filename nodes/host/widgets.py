"""Widgets that several nodes have."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...acestep_core.constants import MAX_SEED


class FileInput(io.Combo.Input):
    """A combo over files, which may come and go after its list was made: the node itself looks whether one is there."""


def number(name: str, default: float, maximum: float, tooltip: str, step: float = 0.1, **more: bool) -> io.Float.Input:
    """Return a widget for a number from 0 to maximum. more: optional, advanced."""
    return io.Float.Input(name, default=default, min=0.0, max=maximum, step=step, tooltip=tooltip, **more)


def unit(name: str, default: float, tooltip: str, **more: bool) -> io.Float.Input:
    """Return a widget for a number from 0 to 1, in hundredths."""
    return number(name, default, 1.0, tooltip, step=0.01, **more)


def seed(tooltip: str) -> io.Int.Input:
    """Return a widget for a seed that the canvas can count up or draw anew after each run."""
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip)
