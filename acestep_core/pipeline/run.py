"""What one generation computes once and every step reuses: cross-attention K/V, context and step modulations.

A Run belongs to a single sampling run and is dropped with it; nothing is kept on the model, because
hosts share one set of weights between many patched copies. A host that changes weights within a run says which are
in force, and whatever is reused is reused under those alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..models.acestep import AceStep
from ..models.conditioner import Tokens
from ..models.dit import CrossKV, Modulation
from ..models.layers import cast
from ..types import AudioCodes
from .condition import Encoding, context_latents, packed_tokens
from .tasks import Task

# How many sets of weights keep what was computed under them. Hooks alternate between a few in one step; one whose
# strength changes with every step leaves a new set behind each time.
WEIGHTS_AT_ONCE = 4


@dataclass(frozen=True)
class Window:
    """The frames of a whole that a forward sees, where it does not see all of them."""

    frames: tuple[int, ...]
    n_frames: int  # of the whole


@dataclass(frozen=True)
class Branch:
    """One condition's share of a model batch."""

    encoding: Encoding
    rows: tuple[int, ...]  # the plan of each item
    null: bool = False  # the unconditional prediction
    plain: bool = False  # as text2music, without codes or source
    window: Window | None = None  # None sees every frame


# What the context of a branch depends on.
ContextKey = tuple[Task, AudioCodes, int, bool, int]


@dataclass(eq=False)
class Computed:
    """What was computed under one set of weights."""

    tokens: dict[tuple[Encoding, bool], Tokens] = field(default_factory=dict)
    contexts: dict[ContextKey, Tensor] = field(default_factory=dict)
    modulations: dict[float, Modulation] = field(default_factory=dict)
    crosses: dict[tuple[Branch, ...], CrossKV] = field(default_factory=dict)
    joined: dict[tuple[Branch, ...], Tensor] = field(default_factory=dict)  # contexts of a batch


class Run:
    """Velocities of one model over one generation."""

    def __init__(self, model: AceStep, silence: Tensor) -> None:
        self.model = model
        self.silence = silence
        self._levels: tuple[float, ...] = ()
        self._computed: OrderedDict[Hashable, Computed] = OrderedDict()

    def velocity(self, x: Tensor, t: float, branches: Sequence[Branch], weights: Hashable = None) -> Tensor:
        """Return velocities of x [B, T, 64] at noise level t; branches cover the batch in order.

        All branches of one call must have packed conditions of the same length. weights: names the weights that are
        in force, where they change within the run.
        """
        branches = tuple(branches)
        computed = self._under(weights)
        if t not in computed.modulations:
            self._modulate(computed, t, x)
        # The frames that are seen change the context alone.
        whole = tuple(replace(branch, window=None) for branch in branches)
        if whole not in computed.crosses:
            computed.crosses[whole] = self._joined_cross(computed, whole, x)
        if branches not in computed.joined:
            contexts = [self._context(computed, branch, x) for branch in branches]
            computed.joined[branches] = contexts[0] if len(contexts) == 1 else torch.cat(contexts)
        v: Tensor = self.model.decoder(x, computed.joined[branches], computed.modulations[t], computed.crosses[whole])
        return v

    def expect(self, levels: Sequence[float]) -> None:
        """Take the levels of a whole schedule, so that their modulations are computed at once when one is needed."""
        self._levels = tuple(levels)

    def _under(self, weights: Hashable) -> Computed:
        """Return what was computed under these weights, and forget what was not needed for longest."""
        computed = self._computed.setdefault(weights, Computed())
        self._computed.move_to_end(weights)
        if len(self._computed) > WEIGHTS_AT_ONCE:
            self._computed.popitem(last=False)
        return computed

    def _modulate(self, computed: Computed, t: float, like: Tensor) -> None:
        """Compute the modulations of t, and of the whole schedule if it is one of its levels."""
        levels = self._levels if t in self._levels else (t,)
        table = self.model.decoder.modulation(torch.tensor(levels, device=like.device), like.dtype)
        computed.modulations.update({level: table.row(i) for i, level in enumerate(levels)})

    def _joined_cross(self, computed: Computed, branches: tuple[Branch, ...], x: Tensor) -> CrossKV:
        crosses = [self._cross(computed, branch, x) for branch in branches]
        if len(crosses) == 1:
            return crosses[0]
        layers = tuple(
            (torch.cat([k for k, _ in pairs]), torch.cat([v for _, v in pairs]))
            for pairs in zip(*(cross.layers for cross in crosses), strict=True)
        )
        return CrossKV(layers, _joined_masks(crosses, branches))

    def _cross(self, computed: Computed, branch: Branch, x: Tensor) -> CrossKV:
        if branch.null:
            return self._null(len(branch.rows), self._n_tokens(branch), x)
        tokens = self._tokens(computed, branch, x)
        rows = torch.tensor(branch.rows, device=x.device)
        attention_mask = None if bool(tokens.attention_mask.all()) else tokens.attention_mask
        return self.model.decoder.cross_kv(tokens.states, attention_mask).select(rows)

    def _n_tokens(self, branch: Branch) -> int:
        return branch.encoding.n_tokens_when(branch.plain)

    def _tokens(self, computed: Computed, branch: Branch, x: Tensor) -> Tokens:
        key = (branch.encoding, branch.plain)
        if key not in computed.tokens:
            computed.tokens[key] = packed_tokens(self.model, branch.encoding, self.silence.to(x), branch.plain)
        return computed.tokens[key]

    def _context(self, computed: Computed, branch: Branch, x: Tensor) -> Tensor:
        encoding, window = branch.encoding, branch.window
        n_frames = x.shape[1] if window is None else window.n_frames
        key = (encoding.task, encoding.codes, encoding.n_plans, branch.plain, n_frames)
        if key not in computed.contexts:
            computed.contexts[key] = context_latents(self.model, encoding, self.silence.to(x), n_frames, branch.plain)
        context = computed.contexts[key].index_select(0, torch.tensor(branch.rows, device=x.device))
        return context if window is None else context[:, list(window.frames)]

    def _null(self, n_items: int, length: int, like: Tensor) -> CrossKV:
        """Return the null condition: one learned token everywhere, so computed once and repeated by view.

        Attention over equal keys averages equal values: padding cannot change it and needs no mask.
        """
        one = self.model.decoder.cross_kv(cast(self.model.null_condition_emb, like))
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
