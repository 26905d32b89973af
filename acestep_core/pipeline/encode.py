"""From a song to its Encoding, with whatever reads the texts: token ids in, states out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..constants import FRAME_RATE
from ..models.conditioner import Tokens
from ..prompts import caption_text, instruction
from ..text import Ids, caption_ids, lyric_ids
from ..types import AudioCodes, SongSpec
from .condition import Encoding

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Reader(Protocol):
    """A text encoder: contextual states for captions, bare embeddings for lyrics."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def states(self, text: Ids) -> Tokens: ...

    def embeddings(self, text: Ids) -> Tokens: ...


def encode(
    reader: Reader,
    song: SongSpec,
    n_frames: int,
    codes: AudioCodes | None = None,
    codes_strength: float = 1.0,
    task: str = "text2music",
) -> Encoding:
    """Return the Encoding of a song that lasts n_frames.

    With codes the task is `cover` in the model's eyes: it fills in what the codes sketch.
    Raises ValueError for lyrics that are too long, before the encoder runs.
    """
    codes = codes or AudioCodes()
    task = "cover" if codes.n_plans and task == "text2music" else task
    lyrics = lyric_ids(reader.tokenizer, song)
    duration_s = song.duration_s or n_frames / FRAME_RATE
    texts = [caption_text(song, instruction(name), duration_s) for name in dict.fromkeys((task, "text2music"))]
    states = [reader.states(caption_ids(reader.tokenizer, [text])) for text in texts]
    return Encoding(
        text=states[0],
        text_to_music=states[-1],
        lyric=reader.embeddings(lyrics.tokens),
        lyric_ids=lyrics,
        codes=codes,
        codes_strength=codes_strength,
    )
