"""What to make: the song as a value of its own, and back to plain sockets."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..acestep_core.constants import (
    AUTO,
    INSTRUMENTAL_LYRICS,
    KEYS,
    LANGUAGES,
    MAX_BPM,
    MAX_DURATION_S,
    TIME_SIGNATURES,
)
from ..acestep_core.types import SongSpec
from .host.sockets import CATEGORY, SongSocket
from .host.spelled import check_spelling, known
from .host.widgets import number

SONG = f"{CATEGORY}/song"
WordSocket = io.Custom("STRING,COMBO")  # fits text inputs and the combos of ACE-Step Song alike


class AceStepSong(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSong",
            display_name="ACE-Step Song",
            category=SONG,
            description="Describes a song: how it sounds, what is sung, and its tempo, key and length.",
            search_aliases=["lyrics", "caption", "prompt"],
            inputs=[
                io.String.Input(
                    "caption",
                    multiline=True,
                    dynamic_prompts=True,
                    placeholder="warm soul ballad, female voice, upright piano, brushed drums",
                    tooltip="How it sounds: genre, mood, voice, instruments, production. Sentences or tags. Leave "
                    "tempo and key to their own fields.",
                ),
                io.String.Input(
                    "lyrics",
                    multiline=True,
                    dynamic_prompts=True,
                    placeholder="[Verse]\n…\n\n[Chorus]\n…",
                    tooltip="What is sung, with section tags in brackets. At most 2,048 tokens, about 1,200 words.",
                ),
                io.Boolean.Input(
                    "instrumental",
                    default=False,
                    tooltip="No voice: the lyrics are ignored and the model gets [Instrumental] instead.",
                ),
                io.Combo.Input(
                    "language",
                    options=[AUTO, *LANGUAGES],
                    default=AUTO,
                    tooltip="Language of the lyrics, as a code such as en, es or ja. auto leaves it open; a planner "
                    "may fill it in.",
                ),
                io.Int.Input(
                    "bpm",
                    default=0,
                    min=0,
                    max=MAX_BPM,
                    tooltip="Tempo in beats per minute, 30 to 300. 0 is auto.",
                ),
                io.Combo.Input(
                    "key", options=[AUTO, *KEYS], default=AUTO, tooltip="Key and mode. auto leaves it open."
                ),
                io.Combo.Input(
                    "time_signature",
                    options=[AUTO, *TIME_SIGNATURES],
                    default=AUTO,
                    tooltip="Beats in a bar: 4 for 4/4, 3 for a waltz, 6 for 6/8.",
                ),
                number(
                    "duration",
                    0.0,
                    MAX_DURATION_S,
                    "Length in seconds, 10 to 600. 0 is auto: as long as the codes, or 120 s without "
                    "codes. A task takes its length from its source instead.",
                ),
            ],
            outputs=[SongSocket.Output(display_name="song", tooltip="For ACE-Step Encode Song and the planner.")],
        )

    @classmethod
    def validate_inputs(cls, input_types, language=AUTO, key=AUTO, time_signature=AUTO):
        return check_spelling(cls, input_types, language=language, key=key, time_signature=time_signature)

    @classmethod
    def execute(cls, caption, lyrics, instrumental, language, bpm, key, time_signature, duration):
        return io.NodeOutput(
            SongSpec(
                caption=caption,
                lyrics=INSTRUMENTAL_LYRICS if instrumental else lyrics,
                language=known("language", language),
                bpm=bpm or None,
                key=known("key", key),
                time_signature=known("time_signature", time_signature),
                duration_s=duration or None,
            )
        )


class AceStepSongInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSongInfo",
            display_name="ACE-Step Song Info",
            category=SONG,
            description="Takes a song apart into plain values. A field on auto comes out as 0 or empty.",
            inputs=[SongSocket.Input("song", tooltip="Any song.")],
            outputs=[
                io.String.Output(display_name="caption", tooltip="How it sounds."),
                io.String.Output(display_name="lyrics", tooltip="What is sung."),
                io.Int.Output(display_name="bpm", tooltip="Beats per minute, 0 when auto."),
                WordSocket.Output(display_name="key", tooltip='Such as "F# minor", empty when auto.'),
                WordSocket.Output(display_name="time_signature", tooltip="Beats in a bar, empty when auto."),
                WordSocket.Output(display_name="language", tooltip="Language code, empty when auto."),
                io.Float.Output(display_name="duration", tooltip="Seconds, 0 when auto."),
            ],
        )

    @classmethod
    def execute(cls, song):
        return io.NodeOutput(
            song.caption,
            song.lyrics,
            song.bpm or 0,
            song.key or "",
            song.time_signature or "",
            song.language or "",
            song.duration_s or 0.0,
        )
