"""Audio codes as text: the planner's own `<|audio_code_N|>`, one plan a paragraph, and what else people write.

Source: ace-step/ACE-Step-1.5, `acestep/llm_inference.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from ..types import AudioCodes, checked_codes

AUDIO_CODE = "<|audio_code_{code}|>"
# A code in a text that the planner has a token for. Splitting by it gives words and numbers in turn.
LEGAL_CODE = re.compile(r"<\|audio_code_(0|[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-3][0-9]{3})\|>")
# A code in either writing, and what may stand between it and the next.
_TOKEN = re.compile(r"<\|audio_code_([0-9]{1,9})\|>\s*")
_NUMBER = re.compile(r"([0-9]{1,9})(?![^\s,])\s*,?\s*")
_BYTE_ORDER_MARK = "\ufeff"  # what some editors begin a file with
_SHOWN = 24  # characters of a faulty text that an error quotes


def to_text(codes: AudioCodes) -> str:
    """Return codes as text, with an empty line between plans."""
    return "\n\n".join(map(codes_text, codes.sequences))


def from_text(text: str) -> AudioCodes:
    """Return the codes of a text: all as `<|audio_code_N|>`, all as numbers, or in JSON lists.

    Codes have white space of any kind between them, numbers also commas, and a line with nothing on it begins the
    next plan. A JSON list of numbers is one plan, a list of lists is as many.

    Raises ValueError, naming the position, for anything else and for a code out of range.
    """
    text = text.replace(_BYTE_ORDER_MARK, " ")
    start = text.lstrip()[:1]
    if start == "[":
        return _from_json(text)
    writing = _TOKEN if start == "<" else _NUMBER
    return AudioCodes(tuple(_plan(text, *span, writing) for span in _paragraphs(text)))


def codes_text(codes: Sequence[int]) -> str:
    """Return a sequence of audio codes as the planner reads it."""
    return "".join(AUDIO_CODE.format(code=code) for code in codes)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each stretch of lines that are not blank begins and ends."""
    start = 0
    for is_blank, lines in groupby(text.splitlines(keepends=True), str.isspace):
        end = start + sum(map(len, lines))
        if not is_blank:
            yield start, end
        start = end


def _plan(text: str, start: int, end: int, writing: re.Pattern[str]) -> tuple[int, ...]:
    """Return the codes from start up to end of a text that has them in one writing."""
    codes: list[int] = []
    start = end - len(text[start:end].lstrip())
    while start < end:
        match = writing.match(text, start, end)
        if match is None:
            raise ValueError(
                f'"{text[start : start + _SHOWN]}" at character {start} of the codes text, after {len(codes)} codes, '
                f"is not an audio code; write all of them as {AUDIO_CODE.format(code='N')} or all as numbers, "
                "or remove it"
            )
        codes.append(int(match[1]))
        start = match.end()
    return checked_codes(codes)


def _from_json(text: str) -> AudioCodes:
    """Return the codes of a text that begins as a JSON list."""
    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the codes text begins as a JSON list but is not one: {error}; correct it there") from None
    plans = written if all(isinstance(each, list) for each in written) else [written]
    for plan, codes in enumerate(plans):
        for position, code in enumerate(codes):
            if type(code) is not int:
                raise ValueError(
                    f"{json.dumps(code)[:_SHOWN]} at position {position} of plan {plan + 1} is not an audio code; "
                    "write one list of numbers for each plan"
                )
    return AudioCodes(tuple(map(tuple, plans)))
