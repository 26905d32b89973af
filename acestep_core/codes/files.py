"""Audio codes on disk, so that a plan can be kept, shared and used again.

A file is JSON with a format name, a version and the sequences.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..atomic_write import encoded, write_new
from ..numbering import numbered
from ..types import AudioCodes

FORMAT = "acestep-codes"
VERSION = 1
SUFFIX = ".codes.json"


def text(codes: AudioCodes) -> str:
    """Return what a file of these codes holds."""
    return json.dumps({"format": FORMAT, "version": VERSION, "sequences": [list(s) for s in codes.sequences]})


def save_next(codes: AudioCodes, folder: Path, name: str) -> str:
    """Write codes under the next number of a name, which no other program gets, and return the file name.

    Raises: ValueError, one sentence, where the disk refuses.
    """

    def write(number: int) -> str:
        file = f"{name}_{number:05}_{SUFFIX}"
        save(codes, folder / file)
        return file

    return numbered(folder, name, write)


def save(codes: AudioCodes, path: Path) -> None:
    """Write codes to a new file, whole or not at all. Raises FileExistsError where the name is taken."""
    write_new({path: encoded(text(codes))})


def load(path: Path) -> AudioCodes:
    """Return the codes of a file.

    Raises ValueError, naming the position, for a file that is truncated, damaged or not a codes file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged or not a codes file: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a codes file: its format is not {FORMAT}")
    if content.get("version") != VERSION:
        raise ValueError(f"{path.name} is version {content.get('version')}, this pack reads version {VERSION}")
    sequences = content.get("sequences")
    if not isinstance(sequences, list):
        raise ValueError(f"{path.name} has no list of sequences")
    for plan, sequence in enumerate(sequences):
        _check(path.name, plan, sequence)
    return AudioCodes(tuple(map(tuple, sequences)))


def _check(name: str, plan: int, sequence: object) -> None:
    if not isinstance(sequence, list):
        raise ValueError(f"{name}: plan {plan + 1} is not a list of codes")
    for position, code in enumerate(sequence):
        if type(code) is not int:
            raise ValueError(f"{name}: plan {plan + 1} has {code!r} at position {position}, which is not a code")
