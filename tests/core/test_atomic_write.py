"""Files are whole or absent, whatever writing them runs into, and what was there before stays."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acestep_pack.acestep_core import bundle
from acestep_pack.acestep_core.atomic_write import QUIET_S, write, write_new, write_text
from acestep_pack.acestep_core.codes import files as codes_files
from acestep_pack.acestep_core.types import AudioCodes

SOUND = bundle.Sound("song.flac", "flac", 48_000, 2, 1.0)
WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: write(b"new", path),
    "text": lambda path: write_text("new", path),
}
CREATORS: dict[str, Callable[[Path], object]] = {
    "files": lambda path: write_new({path.with_suffix(".lrc"): b"new", path: b"new"}),
    "codes": lambda path: codes_files.save(AudioCodes(((1, 2),)), path),
    "a bundle": lambda path: bundle.save(path.parent, SOUND, b"new", bundle.Origin()),
    "a numbered bundle": lambda path: bundle.save_next(path.parent, "song", SOUND, b"new", bundle.Origin()),
    "numbered codes": lambda path: codes_files.save_next(AudioCodes(((1, 2),)), path.parent, "song"),
}


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file get its name, in any way."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("replace", "link", "rename"):
        monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [True, False], ids=["over a file", "a new file"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, full: None, name: str, there: bool
) -> None:
    path = tmp_path / "song.json"
    if there:
        path.write_text("old")
    with pytest.raises(OSError, match="No space left on device"):
        WRITERS[name](path)
    assert [file.name for file in tmp_path.iterdir()] == (["song.json"] if there else [])
    assert not there or path.read_text() == "old"


@pytest.mark.parametrize("name", CREATORS)
def test_a_file_that_cannot_be_created_leaves_nothing(tmp_path: Path, full: None, name: str) -> None:
    with pytest.raises((OSError, ValueError), match="No space left on device"):
        CREATORS[name](tmp_path / "song.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_files_that_belong_together_are_all_there_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:  # as on exFAT
        monkeypatch.setattr(os, "link", refuse)
    paths = [tmp_path / f"song.{suffix}" for suffix in ("json", "lrc", "flac")]
    write_new({path: path.name.encode() for path in paths})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {p.name: p.name.encode() for p in paths}
    for taken in paths:
        for other in paths:
            other.unlink()
        taken.write_text("somebody's")
        with pytest.raises(FileExistsError):
            write_new(dict.fromkeys(paths, b"new"))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(taken.name, "somebody's")]
        write_new({path: b"" for path in paths if path != taken})


def test_what_a_killed_program_left_is_removed_and_what_one_still_writes_is_not(tmp_path: Path) -> None:
    dead, live, users = (tmp_path / name for name in (f".{'0' * 32}.part", f".{'1' * 32}.part", ".mine.part"))
    for path in (dead, live, users):
        path.write_text("half")
    for path in (dead, users):
        os.utime(path, (time.time() - QUIET_S - 5,) * 2)
    write_new({tmp_path / "song.json": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {live.name, users.name, "song.json"}


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_text("a\udfffb", tmp_path / "song.lrc")
    assert (tmp_path / "song.lrc").read_text(encoding="utf-8") == "a?b"
