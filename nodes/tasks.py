"""One thin node for each task: sources and settings in, a TASK out. `acestep_core/pipeline/tasks.py` defines them."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..acestep_core.constants import FRAME_RATE, MAX_DURATION_S
from ..acestep_core.pipeline.preserve import BALANCED, KEEP_MODES, keep
from ..acestep_core.pipeline.splice import regions
from ..acestep_core.pipeline.tasks import complete, cover, extend, extract, lego, repaint, stitch
from ..acestep_core.song.prompts import TRACKS
from .host.latents import frame_mask, latent_source
from .host.sockets import CATEGORY, TaskSocket
from .host.widgets import number, unit

TASKS = f"{CATEGORY}/tasks"
# As the official interface's Remix tab sets them. Source: ace-step/ACE-Step-1.5, `acestep/ui` (main of 2026-06-26).
REMIX_STRENGTH, REMIX_NOISE_STRENGTH = 0.0, 0.2


def _source_input(name: str = "source", tooltip: str = ""):
    return io.Latent.Input(
        name, tooltip=tooltip or 'The music to start from: from "ACE-Step Encode Audio" or a sampler.'
    )


def _outputs():
    return [TaskSocket.Output(display_name="task", tooltip="For ACE-Step Encode Song, and for ACE-Step Decode.")]


def _seconds(name: str, default: float, tooltip: str, maximum: float = MAX_DURATION_S):
    return number(name, default, maximum, tooltip)


def _track_inputs(chosen: tuple[str, ...], verb: str):
    return [
        io.Boolean.Input(track, default=track in chosen, tooltip=f"{verb} {track.replace('_', ' ')}.")
        for track in reversed(TRACKS)
    ]


def _shown(task) -> io.NodeOutput:
    """Return a task; the text on the node says where it generates."""
    if task.mask is None:
        where = f"{task.n_frames / FRAME_RATE:g} s"
    else:
        spans = [f"{start / FRAME_RATE:g}–{stop / FRAME_RATE:g} s" for start, stop in regions(task, 0)]
        where = f"{', '.join(spans) or 'nothing'} of {task.n_frames / FRAME_RATE:g} s"
    window = "" if task.window_frames >= task.n_frames else f", hearing {task.window_frames / FRAME_RATE:g} s"
    tracks = ", ".join(track for group in task.tracks for track in group)
    return io.NodeOutput(task, ui={"text": (f"{task.name}{f' {tracks}' if tracks else ''}: {where}{window}",)})


class AceStepCover(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepCover",
            display_name="ACE-Step Cover",
            category=TASKS,
            description="A new version of a song in another style: melody and form stay, the caption sets the sound.",
            search_aliases=["remix", "style transfer", "audio to audio", "audio2audio"],
            inputs=[
                _source_input(),
                unit(
                    "strength",
                    1.0,
                    "Part of the steps that follow the source, 0 to 1; the rest follow the text alone: "
                    "0.2 for another style, 1 for the same song.",
                ),
                unit(
                    "noise_strength",
                    0.0,
                    "How much of the source's sound the run starts from, 0 to 1. 0 starts from pure noise.",
                ),
                io.Boolean.Input(
                    "through_codes",
                    default=True,
                    tooltip="On: the model gets the source as five codes a second, melody and rhythm only. Off: it "
                    "gets the source itself, and stays much closer to it.",
                ),
                io.Combo.Input(
                    "preset",
                    options=["custom", "remix"],
                    default="custom",
                    tooltip="remix replaces both strengths by the official interface's: 0 and 0.2, the text alone, "
                    "starting from a fifth of the source's sound.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, strength, noise_strength, through_codes, preset):
        if preset == "remix":
            strength, noise_strength = REMIX_STRENGTH, REMIX_NOISE_STRENGTH
        return _shown(cover(latent_source(source), strength, noise_strength, through_codes))


class AceStepRepaint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepRepaint",
            display_name="ACE-Step Repaint",
            category=TASKS,
            description="Generates parts of a song again and keeps the rest. Several regions take one run.",
            search_aliases=["inpaint", "edit region", "fix line"],
            inputs=[
                _source_input(),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where to generate: from ACE-Step Region, several of those joined, or ACE-Step Weak "
                    "Lines.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(KEEP_MODES),
                    default="balanced",
                    tooltip="How firmly the rest is kept while the region forms: conservative in every step, balanced "
                    "as strength says, aggressive not at all, so the rest may change.",
                ),
                unit("strength", 0.5, "For balanced: 0 is conservative, 1 is almost aggressive."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, mask, mode, strength):
        recording = latent_source(source)
        return _shown(repaint(recording, frame_mask(mask, recording.n_frames), keep(mode, strength)))


class AceStepExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepExtend",
            display_name="ACE-Step Extend",
            category=TASKS,
            description="Continues a song past its end, or adds a lead-in before its beginning. The song itself stays.",
            search_aliases=["outpaint", "continue", "longer"],
            inputs=[
                _source_input(),
                _seconds("left", 0.0, "Seconds of new music before the beginning."),
                _seconds("right", 30.0, "Seconds of new music after the end."),
                _seconds(
                    "context",
                    0.0,
                    "Seconds of the song that the model gets beside the new part. 0 is as much as fits in 600 s "
                    "together; less is faster.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, left, right, context):
        return _shown(extend(latent_source(source), left, right, context))


class AceStepStitch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepStitch",
            display_name="ACE-Step Stitch",
            category=TASKS,
            description="Joins two songs with a new passage between them.",
            search_aliases=["bridge", "transition", "medley", "join", "crossfade", "mix"],
            inputs=[
                _source_input("first", "The song that comes first."),
                _source_input("second", "The song that follows."),
                _seconds("bridge", 10.0, "Seconds of new music between them."),
                _seconds("overlap", 2.0, "Seconds at the end of one and the beginning of the other to make anew."),
                _seconds("context", 0.0, "Seconds of either song that the model hears. 0 is as much as fits in 600 s."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, first, second, bridge, overlap, context):
        return _shown(stitch(latent_source(first), latent_source(second), bridge, overlap, context))


class AceStepLego(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLego",
            display_name="ACE-Step Lego",
            category=TASKS,
            description="Adds an instrument to a song, as a separate stem. Needs a base model.",
            search_aliases=["add track", "stem", "accompany"],
            inputs=[
                _source_input(),
                io.Combo.Input("track", options=list(reversed(TRACKS)), default="guitar", tooltip="The track to add."),
                io.Mask.Input("mask", optional=True, tooltip="1 where to add it; everywhere if nothing is connected."),
                io.Boolean.Input(
                    "keep_outside",
                    default=True,
                    optional=True,
                    tooltip="With a mask: outside it the result is the song, inside only the new track. Off keeps what "
                    "the model generates outside.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, track, mask=None, keep_outside=True):
        recording = latent_source(source)
        region = None if mask is None else frame_mask(mask, recording.n_frames)
        return _shown(lego(recording, track, region, BALANCED if keep_outside else None))


class AceStepExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepExtract",
            display_name="ACE-Step Extract",
            category=TASKS,
            description="Separates tracks from a mix, each as a take, all aligned. Needs a base model.",
            search_aliases=["stems", "separate", "isolate", "vocals", "acapella", "instrumental", "karaoke"],
            inputs=[_source_input(), *_track_inputs(("vocals",), "Extract the")],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, **wanted):
        return _shown(extract(latent_source(source), tuple(track for track, on in wanted.items() if on)))


class AceStepComplete(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepComplete",
            display_name="ACE-Step Complete",
            category=TASKS,
            description="Adds the missing parts to a stem, such as a backing band to a voice. Needs a base model.",
            search_aliases=["accompaniment", "backing track", "vocal2bgm"],
            inputs=[_source_input(), *_track_inputs((), "Complete with")],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, source, **wanted):
        return _shown(complete(latent_source(source), tuple(track for track, on in wanted.items() if on)))
