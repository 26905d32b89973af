"""Cutting and joining audio codes, in seconds or in bars."""

from __future__ import annotations

from itertools import cycle

from comfy_api.v0_0_2 import io

from ..acestep_core.codes import edit
from ..acestep_core.constants import CODE_RATE, MAX_POSITION_S
from ..acestep_core.song.bars import UNITS, in_seconds
from ..acestep_core.types import AudioCodes
from .host.sockets import CATEGORY, CodesSocket, SongSocket
from .host.widgets import number

OPERATIONS = ("slice", "join", "repeat", "replace", "crossfade")
MAX_TIMES = 100


class AceStepEditCodes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepEditCodes",
            display_name="ACE-Step Edit Codes",
            category=f"{CATEGORY}/codes",
            description="Cuts, joins, repeats, replaces or blends audio codes, to rearrange a plan before it becomes "
            "music.",
            search_aliases=["slice codes", "loop", "splice plan", "arrange", "crossfade", "mix", "medley"],
            inputs=[
                CodesSocket.Input("codes", tooltip="The codes to edit; every plan gets the same edit."),
                io.Combo.Input(
                    "operation",
                    options=list(OPERATIONS),
                    default="slice",
                    tooltip="slice keeps only start to end. join appends codes_2. repeat plays start to end several "
                    "times. replace puts the beginning of codes_2 in place of start to end. crossfade blends from "
                    "codes into codes_2.",
                ),
                number(
                    "start",
                    0.0,
                    MAX_POSITION_S,
                    "Where the span begins, in seconds or bars from the start; 0 is the start. For "
                    "slice, repeat and replace. Rounded to the nearest code; there are five a second.",
                ),
                number(
                    "end",
                    0.0,
                    MAX_POSITION_S,
                    "Where the span ends, in seconds or bars from the start. 0 is the end of the "
                    "codes. For slice, repeat and replace.",
                ),
                io.Int.Input(
                    "times",
                    default=2,
                    min=1,
                    max=MAX_TIMES,
                    tooltip="How many times repeat plays the span; 1 changes nothing.",
                ),
                number(
                    "overlap",
                    2.0,
                    MAX_POSITION_S,
                    "For how long crossfade blends both, in seconds or bars. The result is that much "
                    "shorter than both together.",
                ),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="seconds",
                    tooltip="Unit of start, end and overlap. Bars need a song; a bar has as many beats as its time "
                    "signature says, four on auto.",
                ),
                CodesSocket.Input(
                    "codes_2",
                    optional=True,
                    tooltip="The second codes, for join, replace and crossfade: as many plans as codes has, or a "
                    "single plan for all of them.",
                ),
                SongSocket.Input("song", optional=True, tooltip="Gives tempo and time signature where unit is bars."),
            ],
            outputs=[CodesSocket.Output(display_name="codes", tooltip="The edited codes, as many plans as before.")],
        )

    @classmethod
    def execute(cls, codes, operation, start, end, times, overlap, unit, codes_2=None, song=None):
        def counted(value: float) -> int:
            return edit.n_codes_for(in_seconds(value, unit, song))

        second = codes_2 or AudioCodes()
        span = (counted(start), counted(end) if end else None)
        edited = {
            "slice": lambda: edit.excerpt(codes, *span),
            "join": lambda: edit.join(codes, second),
            "repeat": lambda: edit.repeat(codes, times, *span),
            "replace": lambda: edit.replace(codes, second, *span),
            "crossfade": lambda: edit.crossfade(codes, second, counted(overlap)),
        }[operation]()
        return io.NodeOutput(edited, ui={"text": (_summary(codes, edited),)})


def _summary(before, after) -> str:
    """Return the lengths before and after, a line for each plan."""
    lines = [
        f"{len(old) / CODE_RATE:g} s → {len(new) / CODE_RATE:g} s, {len(new)} codes"
        for old, new in zip(cycle(before.sequences), after.sequences, strict=False)
    ]
    return lines[0] if len(lines) == 1 else "\n".join(f"plan {plan + 1}: {line}" for plan, line in enumerate(lines))
