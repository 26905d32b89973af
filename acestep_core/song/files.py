"""Song files: JSON with caption, lyrics, tempo and so on, under our names or the official project's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..types import SongSpec
from .spelling import key_of, language_of, time_signature_of

# What the official project calls our fields. Source: ace-step/ACE-Step-1.5, `examples/`.
OTHER_NAMES = {
    "keyscale": "key",
    "timesignature": "time_signature",
    "vocal_language": "language",
    "duration": "duration_s",
}
UNKNOWN = (None, "", 0, "auto", "N/A")  # what song files write where they leave a field open


def read_song(path: Path) -> SongSpec:
    """Return the song of a JSON file.

    Raises ValueError, naming the file, for what is not one, and FileNotFoundError.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it must be an object with caption, lyrics, bpm, ...")
        return song_of(fields)
    except ValueError as error:  # of JSON, of UTF-8 or of a field
        raise ValueError(f"song file {path.name}: {error}") from None


def song_of(fields: Mapping[str, Any]) -> SongSpec:
    """Return the song of a file's fields; those that are empty, 0 or not a song's are left out.

    Lyrics may be a list of lines; key, time signature and language are taken in every form of `spelling`.

    Raises ValueError for a value out of range.
    """
    known = {name: value for name, value in fields.items() if value not in UNKNOWN}
    values = {OTHER_NAMES.get(name, name): value for name, value in known.items()}
    lyrics = values.get("lyrics", "")
    return SongSpec(
        caption=str(values.get("caption", "")),
        lyrics="\n".join(map(str, lyrics)) if isinstance(lyrics, list) else str(lyrics),
        language=_word(language_of, values.get("language")),
        bpm=_number("bpm", values.get("bpm"), int),
        key=_word(key_of, values.get("key")),
        time_signature=_word(time_signature_of, values.get("time_signature")),
        duration_s=_number("duration", values.get("duration_s"), float),
    )


def _word(parse: Callable[[object], str], value: Any) -> str | None:
    return None if value is None else parse(value)


def _number(name: str, value: Any, kind: type) -> Any:
    if value is None:
        return None
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f'{name} must be a number, got "{value}"') from None
