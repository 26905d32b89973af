"""Prompts to token ids: the Qwen tokenizer, truncation and padding as the text encoder was fed in training.

Runs on the `tokenizers` library alone. The vocabulary comes from the model's own folder, or from a folder
the host knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..constants import END_OF_TEXT_ID, MAX_CAPTION_TOKENS, MAX_LYRIC_TOKENS
from ..types import SongSpec
from .prompts import lyric_header, lyric_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Splits text before byte-pair merging. Source: Qwen/Qwen3-Embedding-0.6B, `tokenizer.json`.
PRETOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A byte-level vocabulary writes bytes that show as themselves, and the others as characters from here on.
FIRST_STAND_IN = 256
VISIBLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


@dataclass(frozen=True, eq=False)
class Ids:
    """Token ids [B, L], padded on the right, and their attention_mask [B, L], False for padding."""

    ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True, eq=False)
class LyricIds:
    """Lyrics as token ids."""

    tokens: Ids  # [1, L]
    n_header: int  # how many of the first belong to the header
    pieces: tuple[str, ...] = ()  # the text of each token of the words

    @property
    def words(self) -> range:
        """Return which tokens are words: after the header, before the end of the text."""
        ids = self.tokens.ids[0].tolist()
        end = ids.index(END_OF_TEXT_ID) if END_OF_TEXT_ID in ids else len(ids)
        return range(min(self.n_header, end), end)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder that has tokenizer.json, or vocab.json with merges.txt.

    Raises FileNotFoundError when the folder has neither.
    """
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocabulary(folder)
    raise FileNotFoundError(f"{folder} has no tokenizer.json and no vocab.json with merges.txt")


def caption_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Ids:
    """Return the ids of caption texts, each cut to MAX_CAPTION_TOKENS."""
    return _padded([_encode(tokenizer, text, MAX_CAPTION_TOKENS) for text in texts])


def lyric_ids(tokenizer: Tokenizer, song: SongSpec) -> LyricIds:
    """Return the ids of a song's lyrics.

    Raises ValueError when they are longer than the model reads: a song must not lose its end in silence.
    """
    text = lyric_text(song)
    ids: list[int] = [*tokenizer.encode(text, add_special_tokens=False).ids, END_OF_TEXT_ID]
    if len(ids) > MAX_LYRIC_TOKENS:
        raise ValueError(f"the lyrics are {len(ids)} tokens long and the model reads {MAX_LYRIC_TOKENS}; shorten them")
    n_header = len(tokenizer.encode(lyric_header(song), add_special_tokens=False).ids)
    lyrics = LyricIds(_padded([ids]), n_header)
    return replace(lyrics, pieces=pieces(tokenizer, [ids[index] for index in lyrics.words]))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of every token of a byte-level vocabulary.

    A character of several tokens belongs to its last, those before have no text; joined, they are the whole.
    """
    texts = []
    waiting = b""
    for token in ids:
        waiting += _bytes(tokenizer.id_to_token(token) or "")
        text = _decoded(waiting)
        texts.append(text or "")
        waiting = waiting if text is None else b""
    return tuple(texts)


def _encode(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    # Qwen3-Embedding's tokenizer appends one end-of-text that survives truncation.
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return [*ids[: max_tokens - 1], END_OF_TEXT_ID]


def _padded(sequences: Sequence[list[int]]) -> Ids:
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), END_OF_TEXT_ID)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    sizes = torch.tensor([[len(sequence)] for sequence in sequences])
    return Ids(ids, torch.arange(length) < sizes)


def _from_vocabulary(folder: Path) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = sorted(settings["added_tokens_decoder"].items(), key=lambda item: int(item[0]))
    for _, token in added:
        tokenizer.add_tokens([AddedToken(token["content"], special=token["special"], normalized=False)])
    return tokenizer


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
