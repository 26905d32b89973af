"""From a song to its Encoding, with whatever reads the texts: token ids in, states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..constants import FRAME_RATE
from ..models.conditioner import Tokens
from ..song.prompts import caption_text, instruction
from ..song.tokens import Ids, caption_ids, lyric_ids
from ..types import AudioCodes, SongSpec
from .condition import Encoding
from .tasks import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


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
    task: Task | None = None,
    timbre: Tensor | None = None,
) -> Encoding:
    """Return the Encoding of a song that lasts n_frames, or that a task makes of its sources.

    With codes alone the task is `cover` in the model's eyes: it fills in what the codes sketch.
    Raises ValueError for lyrics that are too long, before the encoder runs.
    """
    codes = codes or AudioCodes()
    lyrics = lyric_ids(reader.tokenizer, song)
    duration_s = (song.duration_s or n_frames / FRAME_RATE) if task is None else task.duration_s

    def states(instructions: Sequence[str]) -> Tokens:
        texts = [caption_text(song, sentence, duration_s) for sentence in instructions]
        return reader.states(caption_ids(reader.tokenizer, texts))

    plain = instruction("text2music")
    told = _instructions(task) if task is not None or codes.n_plans else [plain]
    text = states(told)
    return Encoding(
        text=text,
        text_to_music=text if told == [plain] else states([plain]),
        lyric=reader.embeddings(lyrics.tokens),
        lyric_ids=lyrics,
        codes=codes,
        codes_strength=codes_strength,
        timbre=timbre,
        task=task,
    )


def _instructions(task: Task | None) -> list[str]:
    """Return the sentence for each row of a task, one where all are told the same."""
    if task is None:
        return [instruction("cover")]
    told = [instruction(task.rule.instruction, group) for group in task.tracks]
    return told if len(told) == 1 else [sentence for sentence in told for _ in range(task.n_items)]
