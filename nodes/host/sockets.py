"""Our socket types, what the options socket carries, and one check of what comes over any wire.

ComfyUI checks the types of wires and the literals of widgets, not what arrives: an untyped node in between, a value
written into an API prompt or a NaN come through. `checked` looks at each input as the node's schema declares it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.v0_0_2 import io

from ...acestep_core.constants import MAX_CODES_TEXT_LENGTH, MAX_TEXT_LENGTH
from ...acestep_core.pipeline.encode import Reader
from ...acestep_core.pipeline.options import Options
from ...acestep_core.pipeline.reference import Reference
from ...acestep_core.pipeline.tasks import Task
from ...acestep_core.scoring.score import Scores
from ...acestep_core.types import AudioCodes, SongSpec, checked_text
from .planner import PlannerModel
from .widgets import FileInput

TextEncoderSocket = io.Custom("ACESTEP_TEXT_ENCODER")
PlannerSocket = io.Custom("ACESTEP_PLANNER")
SongSocket = io.Custom("ACESTEP_SONG")
CodesSocket = io.Custom("ACESTEP_CODES")
ReferenceSocket = io.Custom("ACESTEP_REFERENCE")
TaskSocket = io.Custom("ACESTEP_TASK")
OptionsSocket = io.Custom("ACESTEP_OPTIONS")
ScoreSocket = io.Custom("ACESTEP_SCORE")

CATEGORY = "audio/ACE-Step"

MAX_LENGTHS = {"text": MAX_CODES_TEXT_LENGTH}  # of text inputs that take more than MAX_TEXT_LENGTH
QUOTED = 40  # characters of a wrong text that an error quotes


@dataclass(frozen=True, eq=False)
class SamplerOptions:
    """What the options socket carries: the core's options, and the CONDITIONING that their morph comes from."""

    options: Options
    morph_from: list | None = None


@dataclass(frozen=True)
class Wire:
    """A kind of socket: its name in errors, whether a value belongs in it, and what to connect where one does not."""

    name: str
    fits: Callable[[Any], bool]
    connect: str


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, list | tuple)
        and len(part) == 2
        and (part[0] is None or isinstance(part[0], torch.Tensor))
        and isinstance(part[1], dict)
        for part in value
    )


def _is_latent(value: Any) -> bool:
    # A film with its sound in one has a sentence of its own, where latents are read.
    return isinstance(value, Mapping) and isinstance(value.get("samples"), torch.Tensor | NestedTensor)


def _is_audio(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("waveform"), torch.Tensor)
        and isinstance(value.get("sample_rate"), Integral)
    )


WIRES = {
    "ACESTEP_TEXT_ENCODER": Wire("a text encoder", _is(Reader), "Load ACE-Step Text Encoder"),
    "ACESTEP_PLANNER": Wire("a planner", _is(PlannerModel), "Load ACE-Step Planner"),
    "ACESTEP_SONG": Wire("a song", _is(SongSpec), "ACE-Step Song"),
    "ACESTEP_CODES": Wire("audio codes", _is(AudioCodes), "ACE-Step Plan, Load Codes or Tokenize"),
    "ACESTEP_REFERENCE": Wire("a reference", _is(Reference), "ACE-Step Reference"),
    "ACESTEP_TASK": Wire("a task", _is(Task), "ACE-Step Cover, Repaint or another task"),
    "ACESTEP_OPTIONS": Wire("sampler options", _is(SamplerOptions), "ACE-Step Sampler Options or Morph"),
    "ACESTEP_SCORE": Wire("scores", _is(Scores), "ACE-Step Score Lyrics or Score Plan"),
    "MODEL": Wire("a MODEL", _is(ModelPatcher), "Load ACE-Step Model"),
    "VAE": Wire("a VAE", _is(comfy.sd.VAE), "Load ACE-Step VAE"),
    "CONDITIONING": Wire("a CONDITIONING", _is_conditioning, "ACE-Step Encode Song"),
    "LATENT": Wire("a LATENT", _is_latent, "ACE-Step Encode Song, Encode Audio or a sampler"),
    "AUDIO": Wire("an AUDIO", _is_audio, "Load Audio or ACE-Step Decode (a film without sound gives no AUDIO)"),
    "MASK": Wire("a MASK", _is(torch.Tensor), "ACE-Step Region or Weak Lines"),
    "INT": Wire("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool), "Int"),
    "FLOAT": Wire("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool), "Float"),
    "STRING": Wire("a text", _is(str), "String"),
    "BOOLEAN": Wire("true or false", _is(bool), "Boolean"),
    "COMBO": Wire("a choice from its list", _is(str), "String"),
}
WORDS = {"STRING", "COMBO"}
NUMBERS = {"INT", "FLOAT"}


def checked(node: type[io.ComfyNode], inputs: Mapping[str, Any]) -> None:
    """Check what came to the inputs of a node against its schema.

    Raises ValueError, one line that names the input, what came and what to connect, for what does not belong there.
    """
    declared = inputs_of(node)
    for name, value in inputs.items():
        if name in declared:
            _check(declared[name], value, left_to_node=name in _validated(node))


@cache
def inputs_of(node: type[io.ComfyNode]) -> dict[str, io.Input]:
    """Return the inputs a node declares, by name."""
    return {given.id: given for given in node.define_schema().inputs}


@cache
def _validated(node: type[io.ComfyNode]) -> frozenset[str]:
    """Return the inputs whose values the node checks itself, by ComfyUI's rule: those its validate_inputs names."""
    return frozenset(inspect.getfullargspec(node.validate_inputs).args)


def _check(given: io.Input, value: Any, left_to_node: bool) -> None:
    kind = given.get_io_type()
    wire = WIRES[kind]
    is_empty_word = left_to_node and not isinstance(given, FileInput)
    is_unconnected = given.optional and not isinstance(given, io.WidgetInput)
    if value is None and (is_empty_word or is_unconnected):
        return
    if kind == "COMBO" and is_empty_word and isinstance(value, Integral) and not isinstance(value, bool):
        return  # a time signature of 4: the node knows how words may be spelled
    if not wire.fits(value):
        raise ValueError(f'"{given.id}" takes {wire.name}, got {_what(value)}; connect {wire.connect}')
    if kind in WORDS:
        checked_text(given.id, value, MAX_LENGTHS.get(given.id, MAX_TEXT_LENGTH))
    if kind in NUMBERS:
        _check_bounds(given, value)
    if kind == "COMBO" and not left_to_node and not isinstance(given, FileInput) and value not in given.options:
        raise ValueError(f'"{given.id}" takes one of {ascii(given.options)[1:-1]}, got {_what(value)}; choose another')


def _check_bounds(given: io.Int.Input | io.Float.Input, value: Real) -> None:
    low = -math.inf if given.min is None else given.min
    high = math.inf if given.max is None else given.max
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f'"{given.id}" takes {low:g} to {high:g}, got {_what(value)}; connect or set such a number')


def _what(value: Any) -> str:
    """Return what a wrong value is, in a few words of ASCII."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {value[:QUOTED]!a}{'...' if len(value) > QUOTED else ''}"
    if isinstance(value, bool | Real):
        return repr(value)[:QUOTED]
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    known = (wire.name for kind, wire in WIRES.items() if kind != "MASK" and value != [] and wire.fits(value))
    return next(known, f"a value of the kind {ascii(type(value).__name__)[1:-1]}")
