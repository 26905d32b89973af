"""What each token of lyrics says: token ids to the pieces of text they stand for.

Timed lyrics need them where no tokenizer is at hand any more, so they are made when the lyrics are encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A byte-level vocabulary writes bytes that show as themselves, and the others as characters from here on.
FIRST_STAND_IN = 256
VISIBLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of every token of a byte-level vocabulary.

    A character of several tokens belongs to its last, those before have no text; joined, they are the whole.
    """
    found = []
    waiting = b""
    for token in ids:
        waiting += _bytes(tokenizer.id_to_token(token) or "")
        text = _decoded(waiting)
        found.append(text or "")
        waiting = waiting if text is None else b""
    return tuple(found)


def _byte_table() -> dict[str, int]:
    """Return the byte that each character of a vocabulary stands for."""
    hidden = sorted(set(range(256)) - set(VISIBLE_BYTES))
    stand_ins = {chr(FIRST_STAND_IN + index): byte for index, byte in enumerate(hidden)}
    return {chr(byte): byte for byte in VISIBLE_BYTES} | stand_ins


_BYTES = _byte_table()


def _bytes(token: str) -> bytes:
    """Return the bytes of a token. A special one may hold characters that stand for no byte: they are themselves."""
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in token)


def _decoded(text: bytes) -> str | None:
    """Return the text of bytes, None where its last character is not whole yet."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
