"""Files that are whole or not there, however many programs write into a folder and whenever one of them is killed.

Bytes gather in a hidden file of a random name, so no writer ever touches another's. It gets its real name when it is
complete: over what was there (write), or only where nothing is (write_new), which is how names are claimed. What a
killed program left behind is removed by the next one that writes into the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

QUIET_S = 600.0  # a file that took no bytes for so long is nobody's: a write takes seconds, on slow shares minutes
_PART = re.compile(r"\.[0-9a-f]{32}\.part")


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    write(encoded(text), path)


def write(content: bytes, path: Path) -> None:
    """Write a file, whole or not at all; what was there stays until it is."""
    with _part(content, path.parent) as part:
        os.replace(part, path)


def write_new(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together under names that nobody has: all of them, or none.

    They get their names one after the other when all are complete, so where the last one is, there are the others.

    Raises: FileExistsError where a name is taken, by this or any other program; what has it stays as it is.
    """
    named: list[Path] = []
    with ExitStack() as parts:
        complete = [(parts.enter_context(_part(content, path.parent)), path) for path, content in files.items()]
        try:
            for part, path in complete:
                _name(part, path)
                named.append(path)
        except BaseException:
            for path in reversed(named):
                path.unlink(missing_ok=True)
            raise


def encoded(text: str) -> bytes:
    """Return text as UTF-8. Text that came over HTTP may hold half a surrogate pair, which no file can: a ? then."""
    return text.encode("utf-8", "replace")


def remove_abandoned(folder: Path, name: re.Pattern[str], now_s: float) -> None:
    """Remove the files of a folder whose whole name matches and that took no bytes for QUIET_S before now_s.

    now_s: the time of a file just written there, because a file server's clock is not ours.
    """
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if name.fullmatch(entry.name)]
    for entry in found:
        with suppress(OSError):  # gone meanwhile, or (on Windows) still open in a program that sleeps
            if now_s - os.stat(entry.path).st_mtime > QUIET_S:
                os.unlink(entry.path)


@contextmanager
def _part(content: bytes, folder: Path) -> Iterator[Path]:
    """Write content to a hidden file that is gone after the `with`, unless it was given another name."""
    part = folder / f".{uuid4().hex}.part"
    try:
        with part.open("xb") as file:
            # Before the bytes: they may need the room.
            remove_abandoned(folder, _PART, os.fstat(file.fileno()).st_mtime)
            file.write(content)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _name(part: Path, path: Path) -> None:
    """Give a complete file its name, in one step that fails where the name is taken."""
    if os.name == "nt":
        os.rename(part, path)  # refuses a name that is taken, which it does nowhere else
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # Without hard links (exFAT, some shares), in two steps: claim the name, then fill it. A kill between the two
        # leaves an empty file; the other order could lose somebody's whole one.
        path.open("xb").close()
        try:
            os.replace(part, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
