"""Files are whole or absent, whatever writing them runs into, and what was there before stays."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from acestep_pack.acestep_core import bundle
from acestep_pack.acestep_core.atomic_write import write, write_text
from acestep_pack.acestep_core.codes import files as codes_files
from acestep_pack.acestep_core.types import AudioCodes

SOUND = bundle.Sound("song.flac", "flac", 48_000, 2, 1.0)
WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write(b"new", path),
    "text": lambda path: write_text("new", path),
    "codes": lambda path: codes_files.save(AudioCodes(((1, 2),)), path),
    "a bundle": lambda path: bundle.save(path.parent, SOUND, b"new", bundle.Origin()),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [True, False], ids=["over a file", "a new file"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, there: bool
) -> None:
    path = tmp_path / "song.json"
    if there:
        path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises((OSError, ValueError), match="No space left on device"):
        WRITERS[name](path)
    assert [file.name for file in tmp_path.iterdir()] == (["song.json"] if there else [])
    assert not there or path.read_text() == "old"


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_text("a\udfffb", tmp_path / "song.lrc")
    assert (tmp_path / "song.lrc").read_text(encoding="utf-8") == "a?b"
