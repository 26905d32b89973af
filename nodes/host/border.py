"""The border between ComfyUI and every node of ours: what comes in is looked at, what goes out can be printed.

ComfyUI prints the errors of nodes, and what it cannot print ends its worker: no later prompt runs. The same becomes
of an exception that is no Exception. So all of that is seen to here, once, around the functions that ComfyUI calls.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard

import comfy.model_management as mm
from comfy_api.v0_0_2 import io

from . import sockets
from .printable import printable

# What a border lets through as it is: the user's Cancel, and the end of the process.
ENDINGS = (mm.InterruptProcessingException, KeyboardInterrupt, SystemExit)
# What an error stays when its text is made printable; the first that it is one of.
KINDS = (FileNotFoundError, MemoryError, ValueError, RuntimeError)


def guard(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Return the node, with the border around its execute, validate_inputs and fingerprint_inputs."""
    node.execute = classmethod(_guarded(node, node.execute.__func__))  # type: ignore[attr-defined,method-assign]
    for name, around in (("validate_inputs", _validating), ("fingerprint_inputs", _raising_printable)):
        if name in vars(node):
            setattr(node, name, classmethod(around(getattr(node, name).__func__)))
    return node


def _guarded(node: type[io.ComfyNode], execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    names = tuple(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        sockets.checked(node, {**dict(zip(names, args, strict=False)), **inputs})
        return _shown(execute(cls, *args, **inputs))

    return _raising_printable(checked)


def _validating(validate: Callable[..., bool | str]) -> Callable[..., bool | str]:
    @functools.wraps(validate)
    def inside(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> bool | str:
        try:
            answer = validate(cls, *args, **inputs)
        except (OSError, ValueError) as error:
            answer = _sentence(error)
        return printable(answer) if isinstance(answer, str) else answer

    inside.__signature__ = inspect.signature(validate)  # type: ignore[attr-defined]
    return inside


def _raising_printable(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inside(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> Any:
        try:
            return function(cls, *args, **inputs)
        except ENDINGS:
            raise
        except BaseException as error:  # all that nodes let out, panics of libraries in Rust among it
            _raise_printable(error)

    return inside


def _raise_printable(error: BaseException) -> NoReturn:
    """Raise an error as it is where ComfyUI can print it and it is a sentence; else without what cannot be printed."""
    if not isinstance(error, Exception) or _is_raw(error) or not _is_printable(str(error)):
        kind = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError)
        raise kind(printable(_sentence(error))) from None
    if not _is_printable("".join(traceback.format_exception(error))):  # a line of code, or what it came from
        raise error.with_traceback(None) from None
    raise error


def _is_printable(text: str) -> bool:
    return printable(text) == text


def _is_raw(error: BaseException) -> TypeGuard[OSError]:
    """Tell whether an error is the system's own, about a file, and no sentence of ours."""
    return isinstance(error, OSError) and error.errno is not None


def _sentence(error: BaseException) -> str:
    """Return what an error says, as one sentence of ours where it is not one yet."""
    if _is_raw(error):
        name = "a file" if error.filename is None else f'"{error.filename}"'
        return f"{name} cannot be read or written: {error.strerror}; check its name, its folder and the space there"
    if not isinstance(error, Exception):
        lines = str(error).splitlines() or [""]
        return f"a library gave up on what it was given ({type(error).__name__}: {lines[0]}); check the texts and files"
    return str(error)


def _shown(output: io.NodeOutput) -> io.NodeOutput:
    """Return a node's output, the texts that it shows without characters that are none."""
    if isinstance(output.ui, dict) and "text" in output.ui:
        output.ui["text"] = tuple(printable(text, ("utf-8",)) for text in output.ui["text"])
    return output
