"""Audio codes as text: the planner's own `<|audio_code_N|>`, one plan a paragraph.

Source: ace-step/ACE-Step-1.5, `acestep/llm_inference.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..types import AudioCodes, checked_codes

AUDIO_CODE = "<|audio_code_{code}|>"
# A code in a text that the planner has a token for. Splitting by it gives words and numbers in turn.
LEGAL_CODE = re.compile(r"<\|audio_code_(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-3][0-9]{3})\|>")
_AUDIO_CODE = re.compile(r"<\|audio_code_([0-9]{1,9})\|>\s*")
_SHOWN = 24  # characters of a faulty text that an error quotes


def to_text(codes: AudioCodes) -> str:
    """Return codes as text, with an empty line between plans."""
    return "\n\n".join(map(codes_text, codes.sequences))


def from_text(text: str) -> AudioCodes:
    """Return the codes of a text. Raises ValueError, naming the position, for anything that is not a code."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    return AudioCodes(tuple(map(parse_codes_text, paragraphs)))


def codes_text(codes: Sequence[int]) -> str:
    """Return a sequence of audio codes as the planner reads it."""
    return "".join(AUDIO_CODE.format(code=code) for code in codes)


def parse_codes_text(text: str) -> tuple[int, ...]:
    """Return the audio codes of a text; white space between them is ignored.

    Raises ValueError, naming the position, for anything else between them and for a code out of range.
    """
    codes: list[int] = []
    end = len(text) - len(text.lstrip())
    while end < len(text):
        match = _AUDIO_CODE.match(text, end)
        if match is None:
            raise ValueError(
                f'"{text[end : end + _SHOWN]}" at character {end} of the codes text, after {len(codes)} codes, '
                f"is not an audio code; write {AUDIO_CODE.format(code='N')} or remove it"
            )
        codes.append(int(match[1]))
        end = match.end()
    return checked_codes(codes)
