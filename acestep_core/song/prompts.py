"""The texts the DiT was trained with, byte for byte: templates and instructions belong to the weights.

Source: ace-step/ACE-Step-1.5, `acestep/constants.py`, `acestep/handler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..constants import UNKNOWN_DURATION_S, UNKNOWN_LANGUAGE
from ..types import SongSpec

INSTRUCTIONS = {
    "text2music": "Fill the audio semantic mask based on the given conditions:",
    "cover": "Generate audio semantic tokens based on the given conditions:",
    "cover-nofsq": "Generate audio semantic tokens based on the given conditions:",
    "repaint": "Repaint the mask area based on the given conditions:",
    "extract": "Extract the {tracks}track from the audio:",
    "lego": "Generate the {tracks}track based on the audio context:",
    "complete": "Complete the input track{tracks}:",
}
TRACKS = (
    "woodwinds",
    "brass",
    "fx",
    "synth",
    "strings",
    "percussion",
    "keyboard",
    "guitar",
    "bass",
    "drums",
    "backing_vocals",
    "vocals",
)
MISSING = "N/A"
LYRIC_HEADER = "# Languages\n{language}\n\n# Lyric\n"
END_OF_TEXT = "<|endoftext|>"


def instruction(task: str, tracks: Sequence[str] = ()) -> str:
    """Return the sentence that tells the model its task; tracks name what to extract, add or complete with.

    Raises ValueError for a task or track the model was not trained on.
    """
    if task not in INSTRUCTIONS:
        raise ValueError(f'task "{task}" is unknown; it must be one of {", ".join(INSTRUCTIONS)}')
    unknown = next((track for track in tracks if track not in TRACKS), None)
    if unknown is not None:
        raise ValueError(f'track "{unknown}" is unknown; choose from {", ".join(TRACKS)}')
    names = " | ".join(track.upper() for track in tracks)
    if task == "complete":
        return INSTRUCTIONS[task].format(tracks=f" with {names}" if names else "")
    return INSTRUCTIONS[task].format(tracks=f"{names} " if names else "")


def caption_text(song: SongSpec, instruction: str, duration_s: float | None) -> str:
    """Return the text for the text encoder. duration_s is the length of the music, None if unknown."""
    seconds = UNKNOWN_DURATION_S if duration_s is None else int(duration_s)
    return (
        f"# Instruction\n{instruction}\n\n"
        f"# Caption\n{song.caption}\n\n"
        f"# Metas\n"
        f"- bpm: {song.bpm or MISSING}\n"
        f"- timesignature: {song.time_signature or MISSING}\n"
        f"- keyscale: {song.key or MISSING}\n"
        f"- duration: {seconds} seconds\n"
        f"{END_OF_TEXT}\n"
    )


def lyric_header(song: SongSpec) -> str:
    """Return the part of the lyric text before the first word."""
    return LYRIC_HEADER.format(language=song.language or UNKNOWN_LANGUAGE)


def lyric_text(song: SongSpec) -> str:
    """Return the text whose token embeddings the lyric encoder reads."""
    return f"{lyric_header(song)}{song.lyrics}{END_OF_TEXT}"
