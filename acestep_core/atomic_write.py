"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    # Text that came over HTTP may hold half a surrogate pair, which no file can.
    write(text.encode("utf-8", "replace"), path)


def write(content: bytes, path: Path) -> None:
    """Write a file, whole or not at all; what was there stays until it is."""
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
