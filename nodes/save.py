"""Takes as files: the audio, and beside it everything needed to make it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.v0_0_2 import io

from ..acestep_core import bundle
from ..acestep_core.audio.file import FORMATS, checked, encode, excess_db, rate_in
from ..acestep_core.bundle import clean_prefix
from ..acestep_core.scoring.score import Score, Scores
from ..acestep_core.types import AudioCodes
from .host import progress
from .host.latents import Item, decoded_from, items_of
from .host.sockets import CATEGORY, CodesSocket, ScoreSocket, SongSocket


class AceStepSave(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepSave",
            display_name="ACE-Step Save",
            category=f"{CATEGORY}/save",
            description="Saves each take as an audio file, with everything needed to make it again beside it.",
            search_aliases=["save audio", "export audio", "wav", "flac", "mp3", "opus", "srt", "lrc", "subtitles"],
            inputs=[
                io.Audio.Input("audio", tooltip="From ACE-Step Decode, or any audio. Each item becomes a file."),
                io.String.Input(
                    "filename_prefix",
                    default="audio/acestep",
                    tooltip="Folder and name under ComfyUI's output folder; a number is added, so nothing is "
                    "overwritten. Takes %date:yyyy-MM-dd%.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="flac",
                    tooltip="flac (24-bit) and wav have no audible loss; wav 32-bit float keeps peaks above full "
                    "scale. mp3 and opus are smaller.",
                ),
                SongSocket.Input("song", optional=True, tooltip="The song, for the JSON file beside the audio."),
                CodesSocket.Input(
                    "codes",
                    optional=True,
                    tooltip="The audio codes the takes were made from, saved in a file beside each.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The latent that was decoded: its seeds and tracks go into the file names and the JSON.",
                ),
                io.String.Input(
                    "lrc",
                    optional=True,
                    force_input=True,
                    tooltip="Timed lyrics as LRC text, saved in a file beside the audio.",
                ),
                ScoreSocket.Input(
                    "score",
                    optional=True,
                    tooltip="Scores of the takes, for the JSON. If lrc is empty, each take's own timed lyrics are "
                    "saved as LRC and SRT files.",
                ),
            ],
            outputs=[
                io.Audio.Output(display_name="audio", tooltip="The unchanged audio."),
                io.String.Output(display_name="file", tooltip="The first audio file, under the output folder."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, filename_prefix, format, song=None, codes=None, latent=None, lrc="", score=None):
        kind = FORMATS[format]
        waveforms, sample_rate = checked(audio)
        sources, codes = sources_of(audio, latent), codes or AudioCodes()
        plans = [bundle.codes_of(codes, item, plan) for item, plan in enumerate(_plans(sources, codes.n_plans))]
        scores = [None] * len(sources) if score is None else _scores(score, sources)
        made_from = _made_from(cls.hidden)
        prompt, workflow = made_from.get("prompt"), made_from.get("workflow")
        place = _place(filename_prefix)

        saved, lines = [], []
        items = zip(waveforms, sources, plans, scores, strict=True)
        for waveform, source, plan, scored in items:
            # Names tell of a take only where a latent is connected.
            take = None if latent is None or source is None else source.take
            n_channels, n_samples = waveform.shape
            rate, duration_s = rate_in(kind, sample_rate), n_samples / sample_rate
            sound = bundle.Sound(place.name + kind.suffix, format, rate, n_channels, duration_s)
            content = encode(waveform, sample_rate, kind, made_from)
            origin = bundle.Origin(song, take, plan, lrc, prompt, workflow, scored)
            file = bundle.save_next(place.folder, place.name, sound, content, origin, take)

            saved.append({"filename": file, "subfolder": place.subfolder, "type": "output"})
            lines.append(f"{place.subfolder}/{file}".lstrip("/"))
            if excess := excess_db(waveform, kind):
                warning = f"{file}: the peak was {excess:.1f} dB above full scale and is cut off"
                progress.log.warning(warning)
                lines.append(warning)
        return io.NodeOutput(audio, lines[0], ui={"audio": saved, "text": ("\n".join(lines),)})


@dataclass(frozen=True)
class Place:
    """Where the files of a run go."""

    folder: Path
    subfolder: str  # the same folder, relative to ComfyUI's output folder
    name: str


def _place(filename_prefix: str) -> Place:
    """Create the folder of a prefix and return where the files go.

    Raises ValueError for a prefix that leads out of the output folder, or where no folder can be created.
    """
    prefix, root = clean_prefix(filename_prefix), folder_paths.get_output_directory()
    if not folder_paths.is_within_directory(root, os.path.join(root, prefix)):
        raise ValueError(f'filename_prefix "{filename_prefix}" leads out of ComfyUI\'s output folder, through a link')
    try:
        folder, name, _, subfolder, _ = folder_paths.get_save_image_path(prefix, root)
    except OSError as error:
        folder = Path(root, prefix).parent
        raise ValueError(f'filename_prefix "{filename_prefix}": no folder {folder}: {error.strerror}') from None
    return Place(Path(folder), subfolder.replace("\\", "/"), name)


def sources_of(audio: dict, latent: dict | None) -> Sequence[Item | None]:
    """Return what each item of the audio came from: as its decoder knows, else item by item as the latent does.

    Raises ValueError for a latent of other takes.
    """
    sources = decoded_from(audio)
    if latent is None:
        return sources
    items = items_of(latent)
    if None not in sources:
        keys = {item.key for item in items}
        if any(source.key not in keys for source in sources) and any(item.take for item in items):
            raise ValueError("the latent holds other takes than the audio; connect the latent that was decoded")
        return sources
    if not any(item.take for item in items):
        return [None] * len(sources)
    if len(items) != len(sources):
        raise ValueError(
            f"the latent has {len(items)} takes, the audio {len(sources)} items; connect the latent that was decoded"
        )
    return items


def _plans(sources: Sequence[Item | None], n_plans: int) -> Sequence[int | None]:
    """Return the plan of each item: the known one; where nothing is known, of as many plans as items its number."""
    if not any(sources) and len(sources) == n_plans:
        return range(n_plans)
    return [None if source is None or source.take is None else source.take.plan for source in sources]


def _scores(score: Scores, sources: Sequence[Item | None]) -> Sequence[Score]:
    """Return the Score of each item, by what it was decoded from where that is known.

    Raises ValueError for the score of other takes.
    """
    if not score.is_of_plans and None not in sources:
        score = score.ordered([source.key for source in sources])
    return score.of_items(_plans(sources, len(score.plans)))


def _made_from(hidden: io.HiddenHolder | None) -> dict[str, Any]:
    """Return the prompt and what the canvas sent with it (the workflow); nothing under --disable-metadata."""
    if hidden is None or args.disable_metadata:
        return {}
    extra = hidden.extra_pnginfo
    sent = {"prompt": hidden.prompt, **(extra if isinstance(extra, dict) else {})}
    return {name: value for name, value in sent.items() if isinstance(value, dict)}
