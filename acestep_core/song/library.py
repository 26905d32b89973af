"""The library of example songs: one JSON file each in `songs/`, chosen by style and seed.

To add a song, add a file with the fields of _FIELDS. Lyrics are a list of lines, so that they are readable in the
file and in a diff. Saved workflows store styles by name: add styles, but do not rename them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..types import SongSpec

SONGS_DIR = Path(__file__).parent / "songs"
ANY_STYLE = "any"

_FIELDS: dict[str, type] = {
    "title": str,
    "styles": list,
    "caption": str,
    "language": str,
    "bpm": int,
    "key": str,
    "time_signature": str,
    "duration": int,  # seconds
    "lyrics": list,
}
_KINDS: dict[type, str] = {str: "a string", int: "a whole number", list: "a list of strings"}


@dataclass(frozen=True)
class ExampleSong:
    """A song of the library."""

    title: str
    styles: tuple[str, ...]  # in lower case
    song: SongSpec

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("the title is empty; give the song one")
        if not self.styles:
            raise ValueError("there are no styles; name at least one, such as folk")
        wrong = next((style for style in self.styles if style in ("", ANY_STYLE) or style != style.lower()), None)
        if wrong is not None:
            raise ValueError(f'style "{wrong}" cannot be used; write a lower-case word other than "{ANY_STYLE}"')


@cache
def load_library(folder: Path = SONGS_DIR) -> tuple[ExampleSong, ...]:
    """Return the songs of a folder in the order of their file names, read once.

    Raises ValueError, naming the file, for an invalid song, and FileNotFoundError if there is none.
    """
    paths = sorted(folder.glob("*.json"), key=lambda path: path.name)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no example songs; install the pack again")
    return tuple(_read(path) for path in paths)


def styles() -> tuple[str, ...]:
    """Return every style of the library once, in alphabetical order."""
    return tuple(sorted({style for example in load_library() for style in example.styles}))


def pick(style: str, seed: int) -> ExampleSong:
    """Return the song a seed picks among those of a style, or among all for ANY_STYLE.

    Consecutive seeds go through all of them in turn.

    Raises ValueError for a style that no song has.
    """
    fitting = [example for example in load_library() if style in (ANY_STYLE, *example.styles)]
    if not fitting:
        raise ValueError(f'no example song has the style "{style}"; use {ANY_STYLE} or one of {", ".join(styles())}')
    return fitting[seed % len(fitting)]


def _read(path: Path) -> ExampleSong:
    try:
        return _example(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # in the JSON, the UTF-8, a field or the song
        raise ValueError(f"example song {path.name}: {error}") from error


def _example(fields: Any) -> ExampleSong:
    if not isinstance(fields, dict) or fields.keys() != _FIELDS.keys():
        raise ValueError(f"it must have exactly the fields {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        value = fields[name]
        items = value if isinstance(value, list) else []
        if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{name} must be {_KINDS[kind]}, got {value!r}")
    return ExampleSong(
        title=fields["title"],
        styles=tuple(fields["styles"]),
        song=SongSpec(
            caption=fields["caption"],
            lyrics="\n".join(fields["lyrics"]),
            language=fields["language"],
            bpm=fields["bpm"],
            key=fields["key"],
            time_signature=fields["time_signature"],
            duration_s=fields["duration"],
        ),
    )
