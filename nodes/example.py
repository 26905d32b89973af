"""A finished song from the library: to hear the model right away, or to see how a good one is written."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..acestep_core.constants import MAX_SEED
from ..acestep_core.song.library import ANY_STYLE, pick, styles
from .host.sockets import SongSocket
from .song import SONG


class AceStepExampleSong(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepExampleSong",
            display_name="ACE-Step Example Song",
            category=SONG,
            description="Picks a finished song, with caption, lyrics and all fields, from the library of the pack.",
            search_aliases=["random song", "dice", "sample song", "inspiration"],
            inputs=[
                io.Combo.Input(
                    "style",
                    options=[ANY_STYLE, *styles()],
                    default=ANY_STYLE,
                    tooltip="Only songs of this style. any is the whole library.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Picks the song. The same seed gives the same song; randomize picks one at random, "
                    "increment goes through them in turn.",
                ),
            ],
            outputs=[SongSocket.Output(display_name="song", tooltip="For ACE-Step Encode Song and the planner.")],
        )

    @classmethod
    def execute(cls, style, seed):
        example = pick(style, seed)
        return io.NodeOutput(example.song, ui={"text": (example.title,)})
