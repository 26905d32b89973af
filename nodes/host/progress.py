"""What the user sees while a node works: the progress bar, the log, and whether Cancel was pressed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import comfy.model_management as mm
import comfy.utils

log = logging.getLogger("acestep")


def raise_if_interrupted() -> None:
    """Raise ComfyUI's interruption if the user has cancelled."""
    mm.throw_exception_if_processing_interrupted()


def of_steps(total: int) -> Callable[[int], None]:
    """Return a function that shows how many of `total` parts are done, and raises when the user cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def update(done: int) -> None:
        raise_if_interrupted()
        bar.update_absolute(done)

    return update


def of_parts() -> Callable[[int, int], None]:
    """Return a function that shows how many parts of how many are done, and raises when the user cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def update(done: int, total: int) -> None:
        raise_if_interrupted()
        bar.update_absolute(done, total)

    return update
