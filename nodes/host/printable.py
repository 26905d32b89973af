"""Texts that ComfyUI can print: whatever its log cannot hold is written as an escape, such as \\u65e5."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

UTF_8 = "utf-8"  # ComfyUI's log file and everything it sends


def printable(text: str, encodings: Iterable[str] = ()) -> str:
    """Return a text with an escape for each character that not all encodings hold; of none given, those of the log."""
    for encoding in encodings or log_encodings():
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def log_encodings() -> set[str]:
    """Return the encodings of everything that ComfyUI's log is written to."""
    streams = (getattr(stream, "encoding", None) for stream in (sys.stdout, sys.stderr))
    return {UTF_8, *filter(None, streams)}


def logger(name: str) -> logging.Logger:
    """Return a logger whose lines can be printed."""
    log = logging.getLogger(name)
    log.addFilter(_make_printable)
    return log


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True
