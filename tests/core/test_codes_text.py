"""Audio codes read back from every way to write them, and whatever is no code is named with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.codes.text import codes_text, from_text, to_text
from acestep_pack.acestep_core.constants import N_CODES
from acestep_pack.acestep_core.types import AudioCodes

PLANS = st.lists(st.lists(st.integers(0, N_CODES - 1), min_size=1, max_size=12), max_size=4)
BLANKS = st.text(" \t\u00a0", max_size=3)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def codes_of(plans: list[list[int]]) -> AudioCodes:
    return AudioCodes(tuple(map(tuple, plans)))


@st.composite
def paragraphs(draw: st.DrawFn, plans: list[list[int]], pattern: str, gaps: st.SearchStrategy[str]) -> str:
    """Draw a text of plans, with a blank line or more between two and anything that says nothing around them."""
    end = draw(LINE_ENDS)
    text = draw(st.sampled_from(["", "\ufeff", "\ufeff" + end, end + " " + end]))
    for plan in plans:
        items = [pattern.format(code) for code in plan]
        text += draw(BLANKS) + items[0]
        for item in items[1:]:
            text += draw(gaps.map(lambda gap: gap.replace("\n", end))) + item
        text += (
            draw(BLANKS) + end + "".join(draw(st.lists(BLANKS.map(lambda blank: blank + end), min_size=1, max_size=3)))
        )
    return text


@given(PLANS)
def test_codes_written_by_us_read_back_as_they_were(plans: list[list[int]]) -> None:
    assert from_text(to_text(codes_of(plans))) == codes_of(plans)


@given(st.data(), PLANS)
def test_tokens_read_back_with_any_line_ends_and_white_space(data: st.DataObject, plans: list[list[int]]) -> None:
    gaps = st.sampled_from(["", " ", "\n", " \n\t", "\u00a0"])
    assert from_text(data.draw(paragraphs(plans, "<|audio_code_{}|>", gaps))) == codes_of(plans)


@given(st.data(), PLANS)
def test_numbers_read_back_with_any_line_ends_and_separators(data: st.DataObject, plans: list[list[int]]) -> None:
    gaps = st.sampled_from([",", ", ", " ", "\t", "\n", ",\n", "\n,", " , "])
    assert from_text(data.draw(paragraphs(plans, "{}", gaps))) == codes_of(plans)


@given(PLANS, st.sampled_from([None, 0, 2]), st.sampled_from(["", "\ufeff", " \r\n"]))
def test_json_lists_read_back(plans: list[list[int]], indent: int | None, before: str) -> None:
    assert from_text(before + json.dumps(plans, indent=indent)) == codes_of(plans)
    for plan in plans:
        assert from_text(before + json.dumps(plan, indent=indent)) == codes_of([plan])


@pytest.mark.parametrize("text", ["", " \r\n\t\r\n", "\ufeff", "[]"])
def test_a_text_that_says_nothing_has_no_plans(text: str) -> None:
    assert from_text(text) == AudioCodes()


FIRST = "<|audio_code_1|>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FIRST}<|audio_code_64000|>", "audio code 64000 at position 1 is outside 0..63999"),
        ("1 2 64000", "audio code 64000 at position 2 is outside"),
        ("[[1], [64000]]", "audio code 64000 at position 0 is outside"),
        (f"{FIRST}, {FIRST}", '", <.*" at character 16 of the codes text, after 1 codes'),
        (" rubbish", '"rubbish" at character 1 of the codes text, after 0 codes'),
        (f"{FIRST}<|audio_co", '"<.audio_co" at character 16'),
        ("<|audio_code_-1|>", "character 0"),
        ("<|audio_code_" + "9" * 5000 + "|>", "character 0"),
        ("9" * 5000, "character 0"),
        ("1, -2", '"-2" at character 3 of the codes text, after 1 codes'),
        ("1, 2.5", '"2.5" at character 3'),
        ("1,,2", '",2" at character 2'),
        ("1;2", '"1;2" at character 0'),
        (f"1, 2\r\n\r\n{FIRST}", '"<.audio_code_1.>" at character 8 of the codes text, after 0 codes'),
        (f"{FIRST}\n \n1, 2", '"1, 2" at character 19 of the codes text, after 0 codes'),
        (f"{FIRST} 2", '"2" at character 17 of the codes text, after 1 codes'),
        ("[1, 2", "begins as a JSON list but is not one: .* line 1 column 6"),
        ("[1 2]", "begins as a JSON list but is not one: .* line 1 column 4"),
        ("[1]\n\n[2]", "begins as a JSON list but is not one: .* line 3 column 1"),
        ("[" * 100_000, "begins as a JSON list but is not one"),
        ("[1, [2]]", r"\[2\] at position 1 of plan 1 is not an audio code; write one list of numbers for each plan"),
        ("[[1], [2, true]]", "true at position 1 of plan 2"),
        ("[1, 2.0]", "2.0 at position 1 of plan 1"),
        ('["1"]', '"1" at position 0 of plan 1'),
    ],
)
def test_faulty_codes_are_named_with_their_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_text(text)
    assert len(str(caught.value)) < 250


@given(PLANS.filter(len))
def test_codes_of_two_writings_are_refused(plans: list[list[int]]) -> None:
    tokens, numbers = codes_text(plans[0]), " ".join(map(str, plans[-1]))
    for text in (f"{tokens}\n\n{numbers}", f"{numbers}\n\n{tokens}", f"{tokens} {numbers}", f"{numbers} {tokens}"):
        with pytest.raises(ValueError, match=r"is not an audio code; write all of them as .* or all as numbers"):
            from_text(text)
