"""From a song to its Encoding, with a text encoder: token ids in, states out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ..constants import FRAME_RATE
from ..models.conditioner import Tokens
from ..song.prompts import caption_text
from ..song.tokens import Ids, caption_ids, lyric_ids
from ..types import AudioCodes, SongSpec
from .condition import Encoding, n_frames_of
from .tasks import TEXT2MUSIC, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@runtime_checkable
class Reader(Protocol):
    """A text encoder: contextual states for captions, bare embeddings for lyrics."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def states(self, text: Ids) -> Tokens: ...

    def embeddings(self, text: Ids) -> Tokens: ...


def encode(
    reader: Reader,
    song: SongSpec,
    codes: AudioCodes | None = None,
    task: Task = TEXT2MUSIC,
    timbre: Tensor | None = None,
) -> Encoding:
    """Return the Encoding of a song under a task, whose window then tells how long it will be.

    Raises ValueError for lyrics that are too long, or codes that do not go with the task, before the encoder runs.
    """
    codes = codes or AudioCodes()
    n_frames = n_frames_of(song, codes, task)
    if not task.n_frames:
        task = replace(task, n_frames=n_frames)
    lyrics = lyric_ids(reader.tokenizer, song)
    duration_s = task.duration_s if task.sources else song.duration_s or task.n_frames / FRAME_RATE

    def states(instructions: Sequence[str]) -> Tokens:
        texts = [caption_text(song, instruction, duration_s) for instruction in instructions]
        return reader.states(caption_ids(reader.tokenizer, texts))

    plain = TEXT2MUSIC.instructions(has_codes=False)
    instructions = task.instructions(has_codes=bool(codes.n_plans))
    text = states(instructions)
    return Encoding(
        text=text,
        text_to_music=text if instructions == plain else states(plain),
        lyric=reader.embeddings(lyrics.tokens),
        lyric_ids=lyrics,
        codes=codes,
        timbre=timbre,
        task=task,
    )
