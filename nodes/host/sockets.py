"""Our socket types, and what the options socket carries."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.v0_0_2 import io

from ...acestep_core.pipeline.options import Options

TextEncoderSocket = io.Custom("ACESTEP_TEXT_ENCODER")
PlannerSocket = io.Custom("ACESTEP_PLANNER")
SongSocket = io.Custom("ACESTEP_SONG")
CodesSocket = io.Custom("ACESTEP_CODES")
ReferenceSocket = io.Custom("ACESTEP_REFERENCE")
TaskSocket = io.Custom("ACESTEP_TASK")
OptionsSocket = io.Custom("ACESTEP_OPTIONS")
ScoreSocket = io.Custom("ACESTEP_SCORE")

CATEGORY = "audio/ACE-Step"


@dataclass(frozen=True, eq=False)
class SamplerOptions:
    """What the options socket carries: the core's options, and the CONDITIONING that their morph comes from."""

    options: Options
    morph_from: list | None = None
