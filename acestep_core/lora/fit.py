"""Fits an adapter to one model: which weights change, how strongly, what is left over, and a report for the user."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from .change import Change
from .files import Adapter
from .names import DECODER, FUSED

# The parts of the model that have a strength of their own.
SELF_ATTENTION, CROSS_ATTENTION, MLP, CONDITION_ENCODER = PARTS = (
    "self_attention",
    "cross_attention",
    "mlp",
    "condition_encoder",
)
OTHER = "other"  # timesteps, input, output, tokenizer: no strength of their own
SIZES = {2_048: "2B", 2_560: "XL"}  # by the width of the decoder
# Which axis of a decoder weight is the decoder's width.
_WIDTH_AXIS = {
    "q_proj": 1,
    "k_proj": 1,
    "v_proj": 1,
    "qkv_proj": 1,
    "kv_proj": 1,
    "gate_proj": 1,
    "up_proj": 1,
    "o_proj": 0,
    "down_proj": 0,
}
N_SHOWN = 5  # how many of the modules left over a warning names

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Strengths:
    """How strongly an adapter acts. Each part of the model gets its own strength times overall."""

    overall: float = 1.0
    self_attention: float = 1.0
    cross_attention: float = 1.0
    mlp: float = 1.0
    condition_encoder: float = 1.0

    def of(self, weight: str) -> float:
        """Return the strength for a weight by our name."""
        return self.of_part(part_of(weight))

    def of_part(self, part: str) -> float:
        """Return the strength for a part of the model, one of PARTS or OTHER."""
        return self.overall * (1.0 if part == OTHER else float(getattr(self, part)))


@dataclass(frozen=True, eq=False)
class Fit:
    """What an adapter changes in one model."""

    changes: Mapping[str, Change]  # by weight of the model
    left_over: tuple[str, ...]  # modules that the model does not have

    @property
    def n_modules(self) -> int:
        return len(self.changes) + len(self.left_over)


def part_of(weight: str) -> str:
    """Return the part of the model that a weight belongs to, one of PARTS or OTHER."""
    words = weight.split(".")
    if words[0] == "encoder" or weight.startswith(f"{DECODER}condition_embedder."):
        return CONDITION_ENCODER
    if words[0] != "decoder" or words[1] != "layers":
        return OTHER
    module = words[3].removesuffix("_norm")
    return {"self_attn": SELF_ATTENTION, "cross_attn": CROSS_ATTENTION, "mlp": MLP}.get(module, OTHER)


def fit(adapter: Adapter, shapes: Shapes) -> Fit:
    """Return an adapter fitted to a model with weights of these shapes.

    Raises: ValueError if the adapter is for the other size of model, if none of it fits, or if a change and its weight
    differ in shape.
    """
    _check_width(adapter, shapes)
    changes: dict[str, Change] = {}
    left_over = list(adapter.unknown)
    for weight, change in adapter.changes.items():
        targets = _targets(weight, shapes)
        if not targets:
            left_over.append(weight.removesuffix(".weight"))
            continue
        _check_shape(adapter.name, weight, change, [shapes[target] for target in targets])
        changes |= _divided(change, targets, shapes)
    if not changes:
        raise ValueError(
            f"none of the {len(left_over)} modules of {adapter.name} are in this model (the first is {left_over[0]}): "
            "choose an adapter that was trained on it"
        )
    return Fit(changes, tuple(left_over))


def width(adapter: Adapter) -> int | None:
    """Return the width of the decoder that an adapter was trained on, None if none of its changes shows it."""
    for weight, change in adapter.changes.items():
        words = weight.split(".")
        axis = _WIDTH_AXIS.get(words[-2]) if words[0] == "decoder" and len(words) > 2 else None
        if axis is not None and words[-1] == "weight":
            return change.factors.shape[axis]
    return None


def describe(adapter: Adapter, fitted: Fit, strengths: Strengths) -> str:
    """Return the text on the node: what was loaded, one fact per line, warnings last."""
    lines = [
        f"{adapter.name}: {adapter.format}{_sizes(fitted.changes.values(), adapter.alpha_known)}",
        f"matched {len(fitted.changes)} of {fitted.n_modules} modules: {_parts(fitted, strengths)}",
    ]
    if (expected := width(adapter)) is not None:
        lines.append(f"trained on ACE-Step 1.5 {_size(expected)}")
    if adapter.trigger:
        lines.append(f"trigger word: {adapter.trigger}")
    return "\n".join((*lines, *warnings(adapter, fitted, strengths)))


def warnings(adapter: Adapter, fitted: Fit, strengths: Strengths) -> list[str]:
    """Return the reasons why the adapter may do less than the user expects."""
    lines = [f"warning: {note}" for note in adapter.notes]
    if fitted.left_over:
        n_more = len(fitted.left_over) - N_SHOWN
        names = ", ".join(fitted.left_over[:N_SHOWN]) + (f" and {n_more} more" if n_more > 0 else "")
        lines.append(f"warning: {len(fitted.left_over)} of {fitted.n_modules} modules are not used: {names}")
    if not any(strengths.of(weight) for weight in fitted.changes):
        lines.append("warning: the strength of every part that this adapter changes is 0, so nothing is changed")
    return lines


def _check_width(adapter: Adapter, shapes: Shapes) -> None:
    expected, actual = width(adapter), shapes[f"{DECODER}norm_out.weight"][0]
    if expected is not None and expected != actual:
        raise ValueError(
            f"{adapter.name} is for ACE-Step 1.5 {_size(expected)}, and this model is {_size(actual)}: choose an "
            "adapter of its size, or load the other model"
        )


def _size(n: int) -> str:
    return f"{SIZES[n]} (width {n})" if n in SIZES else f"of width {n}"


def _targets(weight: str, shapes: Shapes) -> list[str]:
    """Return the model's weights that a change is for: one, or several that the file has fused; [] if it has none."""
    words = weight.split(".")
    names = [".".join((*words[:-2], each, words[-1])) for each in FUSED.get(words[-2], ())] or [weight]
    return names if all(name in shapes for name in names) else []


def _check_shape(name: str, weight: str, change: Change, targets: Sequence[torch.Size]) -> None:
    rows, columns = sum(target[0] for target in targets), math.prod(targets[0][1:])
    shape = change.factors.shape
    if shape != (rows, columns):
        raise ValueError(
            f"{name} changes {weight} as {list(shape)}, and this model has it as {[rows, columns]}: choose an adapter "
            "that was trained on it"
        )
    # The lengths of columns span all fused weights, so they cannot be divided among them.
    lengths = [(rows, 1)] if len(targets) > 1 else [(rows, 1), (1, columns)]
    if change.magnitude is not None and tuple(change.magnitude.shape) not in lengths:
        raise ValueError(
            f"{name} has magnitudes {list(change.magnitude.shape)} for {weight}, which is {[rows, columns]}: the file "
            "is damaged, or of a kind that is not supported"
        )


def _divided(change: Change, targets: Sequence[str], shapes: Shapes) -> dict[str, Change]:
    if len(targets) == 1:
        return {targets[0]: change}
    divided, start = {}, 0
    for target in targets:
        stop = start + shapes[target][0]
        divided[target] = change.rows(start, stop)
        start = stop
    return divided


def _sizes(changes: Collection[Change], alpha_known: bool) -> str:
    """Return rank, alpha and scale as text, as ranges where modules differ."""
    ranks = {change.factors.rank for change in changes if change.factors.rank is not None}
    alphas = {change.alpha for change in changes if change.alpha is not None}
    scales = {change.scale for change in changes}
    return (
        (f", rank {_range(ranks)}" if ranks else "")
        + (f", alpha {_range(alphas)}" if alphas and alpha_known else "")
        + f", scale {_range(scales)}"
    )


def _range(values: set[float] | set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if math.isclose(low, high, rel_tol=1e-6) else f"{low:.4g}–{high:.4g}"


def _parts(fitted: Fit, strengths: Strengths) -> str:
    counts = Counter(map(part_of, fitted.changes))
    shown = []
    for part in (*PARTS, OTHER):
        if counts[part]:
            shown.append(f"{part.replace('_', '-')} {counts[part]} at {strengths.of_part(part):.4g}")
    return ", ".join(shown)
