"""The texts the planner was trained with, byte for byte: chat prompts, the think block, audio codes.

Text in and text out: `grammar` decides what the planner may write into a think block, the tokenizer turns text into
ids. A think block is a SongSpec without lyrics; fields it lacks are unknown.
Source: ace-step/ACE-Step-1.5, `acestep/llm_inference.py` and `acestep/constants.py`, with the open assistant
turn of its pull requests 1127 and 1128.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..codes.text import codes_text
from ..constants import INSTRUMENTAL_LYRICS
from ..types import SongSpec, cleaned_text

INSTRUCTIONS = {
    "plan": "Generate audio semantic tokens based on the given conditions:",
    "understand": "Understand the given musical conditions and describe the audio semantics accordingly:",
    "idea": "Expand the user's input into a more detailed and specific musical description:",
    "format": "Format the user's input into a more detailed and specific musical description:",
}
END_OF_TURN = "<|im_end|>"
CHAT = (
    "<|im_start|>system\n# Instruction\n{instruction}\n\n<|im_end|>\n"
    "<|im_start|>user\n{user}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CAPTION_AND_LYRICS = "# Caption\n{caption}\n\n# Lyric\n{lyrics}"
LYRICS_ALONE = "# Lyric\n{lyrics}\n"
IDEA = "{query}\n\ninstrumental: {instrumental}"
NO_USER_INPUT = "NO USER INPUT"
THINK = "<think>\n{fields}\n</think>"
AFTER_THINK = "\n\n"

# Everything YAML writes below a field's first line is indented or blank.
_NEXT_FIELD = re.compile(r"\n(?=\S)")
_LYRIC_HEADER = re.compile(r"(# Languages?\n[^\n]{0,64}\n+)?# Lyrics?[ \t]*(\n|$)", re.IGNORECASE)


# Prompts. Each ends where the planner continues.


def metadata_prompt(song: SongSpec) -> str:
    """Return what the planner reads before it writes the think block of a song."""
    return _chat("plan", CAPTION_AND_LYRICS.format(caption=song.caption, lyrics=song.lyrics) + "\n")


def metadata_prompt_without(song: SongSpec, negative: str = "") -> str:
    """Return the guidance counterpart of metadata_prompt: a negative caption, or none, with the same lyrics."""
    if _says_something(negative):
        return metadata_prompt(SongSpec(caption=negative, lyrics=song.lyrics))
    return _chat("plan", LYRICS_ALONE.format(lyrics=song.lyrics))


def codes_prompt(song: SongSpec, thought: SongSpec) -> str:
    """Return what the planner reads before it writes audio codes.

    song has the caption and lyrics as the user wrote them; thought holds the metadata to follow, the
    rewritten caption among it. The assistant's turn stays open after the think block, as in training.
    """
    return metadata_prompt(song) + think_text(thought) + AFTER_THINK


def codes_prompt_without(negative: str = "") -> str:
    """Return the guidance counterpart of codes_prompt: a bare negative prompt, or no input, and no thought."""
    user = negative if _says_something(negative) else NO_USER_INPUT
    return _chat("plan", user) + think_text(SongSpec()) + AFTER_THINK


def understand_prompt(codes: Sequence[int]) -> str:
    """Return what the planner reads before it describes a sequence of audio codes."""
    return _chat("understand", codes_text(codes) or NO_USER_INPUT)


def idea_prompt(query: str, instrumental: bool) -> str:
    """Return what the planner reads before it makes a song of one sentence."""
    return _chat("idea", IDEA.format(query=_or(query, NO_USER_INPUT), instrumental=str(instrumental).lower()))


def format_prompt(song: SongSpec) -> str:
    """Return what the planner reads before it rewrites a song's caption and lyrics."""
    return _chat(
        "format",
        CAPTION_AND_LYRICS.format(
            caption=_or(song.caption, NO_USER_INPUT), lyrics=_or(song.lyrics, INSTRUMENTAL_LYRICS)
        ),
    )


# The think block.


def think_fields(song: SongSpec) -> dict[str, str | int]:
    """Return the known fields of a song's think block, under the planner's names."""
    fields = {
        "bpm": song.bpm,
        "caption": song.caption or None,
        "duration": None if song.duration_s is None else int(song.duration_s),
        "keyscale": song.key,
        "language": song.language,
        "timesignature": None if song.time_signature is None else int(song.time_signature),
    }
    return {name: value for name, value in fields.items() if value is not None}


def think_text(song: SongSpec) -> str:
    """Return a song's think block as PyYAML writes it, with the folds and quotes that the planner was trained on."""
    import yaml

    fields = think_fields(song)
    text = yaml.safe_dump(fields, allow_unicode=True, sort_keys=True) if fields else ""
    return THINK.format(fields=text.strip("\n"))


def parse_think(text: str) -> SongSpec:
    """Return the song of a think block, as the planner wrote it or as think_text renders it.

    Text after the block is ignored, the closing tag may be missing, and unknown names are skipped. Raises ValueError
    for a value out of range. Two characters do not survive: U+0085 becomes a space in YAML, and a null is left out.
    """
    block = cleaned_text(text).partition("\n</think>")[0]
    lines = (field.partition(":") for field in _NEXT_FIELD.split(block))
    values = {name.strip().lower(): _scalar(value) for name, _, value in lines}
    return SongSpec(
        caption=values.get("caption", ""),
        language=values.get("language") or None,
        bpm=_whole_number("bpm", values.get("bpm", "")),
        key=values.get("keyscale") or None,
        time_signature=values.get("timesignature") or None,
        duration_s=_whole_number("duration", values.get("duration", "")),
    )


def parse_lyrics(text: str) -> str:
    """Return the lyrics the planner wrote after its think block, without the headings that it was trained on."""
    lyrics = cleaned_text(text).partition("</think>")[2].strip().removesuffix(END_OF_TURN).rstrip()
    header = _LYRIC_HEADER.match(lyrics)
    return lyrics[header.end() :].strip() if header else lyrics


def _chat(mode: str, user: str) -> str:
    return CHAT.format(instruction=INSTRUCTIONS[mode], user=user)


def _or(text: str, otherwise: str) -> str:
    return text if text.strip() else otherwise


def _says_something(negative: str) -> bool:
    return negative.strip() not in ("", NO_USER_INPUT)


def _scalar(written: str) -> str:
    """Return the text of a field's value, with its lines joined and its quotes removed.

    Only a quoted value is read as YAML: the planner also writes plain values that YAML would read as a comment, a
    number or a boolean.
    """
    import yaml

    plain = " ".join(line.strip(" \t") for line in written.split("\n")).strip(" \t")
    if not plain.startswith(("'", '"')):
        return plain
    try:
        value = yaml.safe_load(written.strip(" \t\n"))
    except (yaml.YAMLError, ValueError, OverflowError):  # the planner opened a quote that it did not close
        return plain
    return value if isinstance(value, str) else plain


def _whole_number(field: str, text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f'{field} must be a whole number, got "{text}"')
    return int(text)
