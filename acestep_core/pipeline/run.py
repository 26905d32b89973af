"""What one generation computes once and every step reuses: cross-attention K/V and step modulations.

A Run belongs to a single sampling run and is dropped with it; nothing is kept on the model, because
hosts share one set of weights between many patched copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.acestep import AceStep
from ..models.dit import CrossKV, Modulation
from ..models.layers import cast
from .condition import Condition, Encoding, condition
from .sample import Evaluation


@dataclass(frozen=True)
class Branch:
    """One condition's share of a model batch."""

    encoding: Encoding
    rows: tuple[int, ...]  # the plan of each item
    null: bool = False  # the unconditional prediction
    plain: bool = False  # as text2music, without codes or source


class Run:
    """Velocities of one model over one generation.

    at: the current evaluation of our own loop, the only thing here that changes from step to step; None under core's
    samplers. A network that is only given x and a noise level reads it to switch conditions.
    """

    def __init__(self, model: AceStep, silence: Tensor) -> None:
        self.model = model
        self.silence = silence
        self.at: Evaluation | None = None
        self._conditions: dict[tuple[Encoding, bool], Condition] = {}
        self._modulations: dict[float, Modulation] = {}
        self._prepared: dict[tuple[Branch, ...], tuple[CrossKV, Tensor]] = {}

    def condition(self, encoding: Encoding, like: Tensor, plain: bool = False) -> Condition:
        """Return the condition of an encoding for latents like [B, T, 64], made at the first call."""
        if (encoding, plain) not in self._conditions:
            n_frames = like.shape[1]
            self._conditions[encoding, plain] = condition(self.model, encoding, self.silence, n_frames, like, plain)
        return self._conditions[encoding, plain]

    def velocity(self, x: Tensor, t: float, branches: Sequence[Branch]) -> Tensor:
        """Return velocities of x [B, T, 64] at noise level t; branches cover the batch in order.

        All branches of one call must have packed conditions of the same length, and the same one at every call.
        """
        branches = tuple(branches)
        if t not in self._modulations:
            self.expect((t,), x)
        if branches not in self._prepared:
            self._prepared[branches] = self._prepare(branches, x)
        cross, context = self._prepared[branches]
        v: Tensor = self.model.decoder(x, context, self._modulations[t], cross)
        return v

    def expect(self, levels: Sequence[float], like: Tensor) -> None:
        """Compute the modulations of a whole schedule at once, in the dtype and on the device of `like`."""
        table = self.model.decoder.modulation(torch.tensor(levels, device=like.device), like.dtype)
        self._modulations.update({level: table.row(i) for i, level in enumerate(levels)})

    def _prepare(self, branches: tuple[Branch, ...], x: Tensor) -> tuple[CrossKV, Tensor]:
        parts = [self._branch(branch, x) for branch in branches]
        if len(parts) == 1:
            return parts[0]
        crosses, contexts = zip(*parts, strict=True)
        layers = tuple(
            (torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs]))
            for pairs in zip(*(cross.layers for cross in crosses), strict=True)
        )
        return CrossKV(layers, _joined_masks(crosses, branches)), torch.cat(contexts)

    def _branch(self, branch: Branch, x: Tensor) -> tuple[CrossKV, Tensor]:
        made = self.condition(branch.encoding, x, branch.plain)
        tokens = made.tokens
        rows = torch.tensor(branch.rows, device=tokens.states.device)
        context = made.context.index_select(0, rows)
        if branch.null:
            return self._null(len(branch.rows), tokens.states), context
        attention_mask = None if bool(tokens.attention_mask.all()) else tokens.attention_mask
        return self.model.decoder.cross_kv(tokens.states, attention_mask).select(rows), context

    def _null(self, n_items: int, like: Tensor) -> CrossKV:
        """Return the null condition: one learned token everywhere, so computed once and repeated by view.

        Attention over equal keys averages equal values: padding cannot change it and needs no mask.
        """
        one = self.model.decoder.cross_kv(cast(self.model.null_condition_emb, like))
        length = like.shape[1]
        return CrossKV(
            tuple((k.expand(n_items, -1, length, -1), v.expand(n_items, -1, length, -1)) for k, v in one.layers),
            None,
        )


def _joined_masks(crosses: Sequence[CrossKV], branches: Sequence[Branch]) -> Tensor | None:
    """Return the masks of all branches stacked; a branch without one shows everything."""
    some = next((cross.mask for cross in crosses if cross.mask is not None), None)
    if some is None:
        return None
    shown = some.new_zeros(1, 1, 1, some.shape[-1])
    return torch.cat(
        [
            shown.expand(len(branch.rows), -1, -1, -1) if cross.mask is None else cross.mask
            for cross, branch in zip(crosses, branches, strict=True)
        ]
    )
