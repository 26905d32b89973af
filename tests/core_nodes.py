"""Core's own node classes in this process, by the sockets they have, run with what their schema gives by default."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping
from typing import Any

import nodes  # ComfyUI's own, not ours; importable behind comfyui.make_importable

# The sockets by which core's nodes meet ours.
SOCKETS = (
    "LATENT",
    "CONDITIONING",
    "MODEL",
    "GUIDER",
    "SIGMAS",
    "NOISE",
    "SAMPLER",
    "AUDIO",
    "MASK",
    "HOOKS",
    "HOOK_KEYFRAMES",
)


@functools.cache
def classes() -> Mapping[str, type]:
    """Return core's node classes by id, but for those of web services; two modules need what only a server has."""
    logging.disable(logging.WARNING)
    try:
        asyncio.run(nodes.init_builtin_extra_nodes())
    finally:
        logging.disable(logging.NOTSET)
    return dict(nodes.NODE_CLASS_MAPPINGS)


def inputs(node_id: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the inputs of a node: type and options by name, required ones first; lists of choices are "COMBO"."""
    stated = classes()[node_id].INPUT_TYPES()
    made = {}
    for name, (kind, *options) in {**stated.get("required", {}), **stated.get("optional", {})}.items():
        known = dict(options[0]) if options else {}
        made[name] = (kind, known) if isinstance(kind, str) else ("COMBO", {"options": kind, **known})
    return made


def required(node_id: str) -> set[str]:
    """Return the names of the inputs that a node needs."""
    return set(classes()[node_id].INPUT_TYPES().get("required", {}))


def outputs(node_id: str) -> list[str]:
    """Return the types of what a node makes."""
    return list(classes()[node_id].RETURN_TYPES)


def sockets_of(node_id: str) -> set[str]:
    """Return which of SOCKETS a node has among its inputs, nested ones too, or its outputs."""
    kinds: set[str] = set()
    for kind, options in inputs(node_id).values():
        kinds |= _kinds(kind) | _nested(options)
    for kind in classes()[node_id].RETURN_TYPES:
        kinds |= _kinds(kind)
    return kinds & set(SOCKETS)


def run(node_id: str, **given: Any) -> tuple[Any, ...]:
    """Return the outputs of a node: given inputs, and of the others that are required the defaults of their widgets."""
    cls = classes()[node_id]
    stated = inputs(node_id)
    filled = {name: _default(name, *stated[name]) for name in stated if name in required(node_id) and name not in given}
    if hasattr(cls, "define_schema"):
        made = cls.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**filled, **given)
        return tuple(made.result or ()) if hasattr(made, "result") else tuple(made)
    made = getattr(cls(), cls.FUNCTION)(**filled, **given)
    return tuple(made.get("result", ())) if isinstance(made, dict) else tuple(made)


def _default(name: str, kind: str, options: Mapping[str, Any]) -> Any:
    choices = options.get("options")
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return {name: choices[0]["key"]}
    if choices:
        return options.get("default", choices[0])
    return options.get("default", {"STRING": "", "BOOLEAN": False, "COMFY_AUTOGROW_V3": {}}.get(kind))


def _kinds(kind: str) -> set[str]:
    return set(kind.split(","))


def _nested(options: Any) -> set[str]:
    """Return every type that a growing or switching input can hold."""
    if isinstance(options, Mapping):
        return set().union(*map(_nested, options.values()))
    if isinstance(options, (list, tuple)):
        return set().union(*map(_nested, options)) | ({options[0]} & set(SOCKETS) if _is_type(options) else set())
    return set()


def _is_type(options: list | tuple) -> bool:
    return len(options) > 0 and isinstance(options[0], str)
