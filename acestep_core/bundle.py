"""What is kept of a take beside its sound: names that every system takes, and a document that makes it again.

A bundle is an audio file and its sidecars, all of one stem. The document is a ComfyUI workflow with our part under a
key of its own, so that the canvas opens it like any other. The sound itself is written elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from .atomic_write import encoded, write_new
from .codes import files as codes_file
from .numbering import numbered
from .scoring.score import Score
from .scoring.subtitles import lrc, srt, word_lrc
from .types import AudioCodes, SongSpec, Take

PACK_VERSION = "0.1.0"  # as in pyproject.toml
KEY = "acestep"
FORMAT = "acestep-take"
VERSION = 1
DOCUMENT_SUFFIX = ".json"
LYRICS_SUFFIX = ".lrc"
WORDS_SUFFIX = ".words.lrc"
SUBTITLES_SUFFIX = ".srt"

# What Windows keeps from file names, and the names it keeps to itself.
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

# Bytes of a name that leave room for number, seed, track and suffix in the 255 that file systems take.
MAX_NAME_BYTES = 160

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Sound:
    """The audio file of a bundle: its name and what is in it. format is the choice of the user, "wav 24-bit"."""

    file: str
    format: str
    sample_rate: int
    n_channels: int
    duration_s: float


@dataclass(frozen=True)
class Origin:
    """How a take was made, as far as anyone knows, and how good it is.

    lrc: timed lyrics, in place of those the score knows. prompt and workflow are ComfyUI's, of the whole graph.
    """

    song: SongSpec | None = None
    take: Take | None = None
    codes: AudioCodes = field(default_factory=AudioCodes)
    lrc: str = ""
    prompt: Json | None = None
    workflow: Json | None = None
    score: Score | None = None


def clean_prefix(prefix: str, name: str = "filename_prefix") -> str:
    """Return a prefix, folders and a name with / between, in characters that every system takes. name: the input's.

    Raises ValueError for one that leads out of the folder it is put under, names nothing or is too long.
    """
    path = PureWindowsPath(prefix)  # parts at / and at \, and knows drives
    if path.anchor or ".." in path.parts:
        raise ValueError(
            f'{name} "{prefix}" leads out of ComfyUI\'s output folder; use a folder and a name inside it, '
            'such as "audio/acestep"'
        )
    if not path.parts:
        raise ValueError(f'{name} is empty; give a name, such as "audio/acestep"')
    parts = [_clean(part) for part in path.parts]
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES:
        raise ValueError(
            f"{name} has a name of {longest} bytes, which is too long for a file; use at most {MAX_NAME_BYTES} "
            "(letters beyond a to z take two to four)"
        )
    return "/".join(parts)


def stem(name: str, number: int, take: Take | None) -> str:
    """Return a take's file name without its suffix: song_00001_seed42_drums.

    The number comes first, for ComfyUI finds the next one between the name and the next "_".
    """
    parts = (
        [f"seed{take.seed}" if take.seed is not None else "", _clean(take.track) if take.track else ""] if take else []
    )
    return "_".join(filter(None, (name, f"{number:05}", *parts)))


def codes_of(codes: AudioCodes, item: int, plan: int | None) -> AudioCodes:
    """Return the codes of the plan that an item was sung from; a single plan is everyone's.

    Raises ValueError where there is no such plan, or nobody knows which of several it was (None).
    """
    if codes.n_plans <= 1:
        return codes
    if plan is None:
        raise ValueError(
            f"nobody knows from which of {codes.n_plans} plans take {item + 1} was sung; connect the latent of the "
            "sampler, or disconnect the codes"
        )
    if plan >= codes.n_plans:
        raise ValueError(
            f"take {item + 1} was sung from plan {plan + 1}, but there are codes for {codes.n_plans} plans; "
            "connect the codes that the latent was made with"
        )
    return AudioCodes((codes.sequences[plan],))


def sidecars(origin: Origin) -> dict[str, str]:
    """Return the text of each file that goes beside the audio and its document, by suffix."""
    files: dict[str, str] = {}
    if any(origin.codes.sequences):
        files[codes_file.SUFFIX] = codes_file.text(origin.codes)
    if origin.lrc.strip():
        files[LYRICS_SUFFIX] = origin.lrc
    elif origin.score is not None and origin.score.lines:
        files[LYRICS_SUFFIX] = lrc(origin.score.lines)
        files[WORDS_SUFFIX] = word_lrc(origin.score.lines)
        files[SUBTITLES_SUFFIX] = srt(origin.score.lines)
    return files


def document(sound: Sound, origin: Origin) -> str:
    """Return the JSON that tells how a take was made: ours under KEY, and around it the workflow, if there is one.

    Our key comes first, because the canvas tells a workflow from an API prompt by the first value.
    """
    stem = Path(sound.file).stem
    ours = {
        "format": FORMAT,
        "version": VERSION,
        "pack_version": PACK_VERSION,
        "audio": asdict(sound),
        "song": origin.song and asdict(origin.song),
        "take": origin.take and asdict(origin.take),
        "scores": origin.score and {score.name: score.value for score in origin.score.named},
        "sidecars": [f"{stem}{suffix}" for suffix in sidecars(origin)],
        "prompt": origin.prompt,
    }
    return json.dumps({KEY: ours, **(origin.workflow or {})}, indent=2, ensure_ascii=False) + "\n"


def save_next(folder: Path, name: str, sound: Sound, content: bytes, origin: Origin, named: Take | None = None) -> str:
    """Write a bundle under the next number of a name, which no other program gets, and return the audio's file name.

    sound.file: anything of the right suffix. named: the take whose seed and track the file name tells.

    Raises: ValueError, one sentence, where the disk refuses.
    """

    def write(number: int) -> str:
        file = stem(name, number, named) + Path(sound.file).suffix
        save(folder, replace(sound, file=file), content, origin)
        return file

    return numbered(folder, name, write)


def save(folder: Path, sound: Sound, content: bytes, origin: Origin) -> None:
    """Write a bundle, all of it or nothing, the audio last: if it exists, so do its sidecars.

    Raises: FileExistsError where one of its names is taken, OSError where the disk refuses.
    """
    audio = folder / sound.file
    texts = {**sidecars(origin), DOCUMENT_SUFFIX: document(sound, origin)}
    write_new({**{audio.with_suffix(suffix): encoded(text) for suffix, text in texts.items()}, audio: content})


def _clean(part: str) -> str:
    """Return a part of a path that every system takes as a name; "_" stands for what is forbidden."""
    clean = FORBIDDEN.sub("_", part).strip(" ").rstrip(" .") or "_"
    return f"_{clean}" if clean.split(".")[0].rstrip().lower() in RESERVED else clean
