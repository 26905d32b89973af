"""Numbers of files, song_00001 and so on, that no two programs on one folder ever share.

A number is claimed, not counted: an empty file song_00001.claim, which only one program can create, holds it while
the files are written. ComfyUI's own nodes count it too, and no player takes it for music when its program is killed.
Afterwards the files hold the number themselves. A file by the final name would be no claim, as names differ in seeds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

from .atomic_write import remove_abandoned

CLAIM = ".claim"
N_ATTEMPTS = 10  # at a folder that another program removes, or (on Windows) a claim that it is just giving back
PAUSE_S = 0.02

Written = TypeVar("Written")


def numbered(folder: Path, name: str, write: Callable[[int], Written]) -> Written:
    """Return what write returns for the next number of a name in a folder, which nobody else has meanwhile.

    write gets the number and creates the files, all of which begin with f"{name}_{number:05}"; where it raises
    FileExistsError it is called again with a later one. The folder is created.

    Raises: ValueError, one sentence, for a folder that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(max(_numbers(folder, name), default=0) + 1):
            with suppress(FileExistsError), _claimed(folder, f"{name}_{number:05}{CLAIM}", name):
                # Looked at again under the claim: whoever had it before may have used the number.
                if number not in _numbers(folder, name, without=f"{name}_{number:05}{CLAIM}"):
                    return write(number)
    except OSError as error:
        raise ValueError(
            f"{name} cannot be written to {folder}: {error.strerror or error}; make room there or choose another name"
        ) from None
    raise AssertionError("numbers do not end")


def _numbers(folder: Path, name: str, without: str = "") -> Iterator[int]:
    """Yield the number of each file of a name but one, by ComfyUI's rule: what is between `name_` and "_" or "."."""
    start = os.path.normcase(f"{name}_")
    for file in os.listdir(folder):
        if file != without and os.path.normcase(file).startswith(start):
            with suppress(ValueError):
                yield int(file[len(start) :].split(".")[0].split("_")[0])


@contextmanager
def _claimed(folder: Path, file: str, name: str) -> Iterator[None]:
    """Hold a claim for the length of a `with`. Raises FileExistsError where another program holds it."""
    claim = folder / file
    _create(claim)
    try:
        remove_abandoned(folder, re.compile(re.escape(name) + r"_\d+" + re.escape(CLAIM)), claim.stat().st_mtime)
        yield
    finally:
        with suppress(OSError):  # it is in nobody's way, and removed later
            claim.unlink()


def _create(claim: Path) -> None:
    for attempt in count(1):
        try:
            claim.open("xb").close()
            return
        except (FileNotFoundError, PermissionError):
            if attempt == N_ATTEMPTS:
                raise
            time.sleep(PAUSE_S)
            claim.parent.mkdir(parents=True, exist_ok=True)
