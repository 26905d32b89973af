"""What the user sees while a node works: the progress bar, the log, and whether Cancel was pressed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import comfy.model_management as mm
import comfy.utils
from comfy_execution.utils import get_executing_context

from .printable import logger, printable

log = logger("acestep")


def raise_if_interrupted() -> None:
    """Raise ComfyUI's interruption if the user has cancelled."""
    mm.throw_exception_if_processing_interrupted()


def warn(text: str) -> None:
    """Log a warning, and show it on the node that is running, whoever made that node."""
    log.warning(text)
    context, server = get_executing_context(), sys.modules.get("server")
    if context is not None and server is not None:
        server.PromptServer.instance.send_progress_text(printable(text, ("utf-8",)), context.node_id)


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
