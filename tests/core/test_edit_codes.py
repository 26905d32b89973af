"""Cutting, joining and blending codes: what each edit keeps, and what it refuses."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.codes.edit import crossfade, excerpt, join, n_codes_for, nearest, repeat, replace
from acestep_pack.acestep_core.constants import FSQ_LEVELS, N_CODES
from acestep_pack.acestep_core.models.tokenizer import dequantize
from acestep_pack.acestep_core.types import AudioCodes

SEQUENCES = st.lists(st.integers(0, N_CODES - 1), min_size=1, max_size=30).map(tuple)
CODES = SEQUENCES.map(lambda sequence: AudioCodes((sequence,)))


def plan(*ids: int) -> AudioCodes:
    return AudioCodes((ids,))


def length(codes: AudioCodes) -> int:
    (sequence,) = codes.sequences
    return len(sequence)


@st.composite
def codes_and_span(draw: st.DrawFn) -> tuple[AudioCodes, int, int]:
    codes = draw(CODES)
    start = draw(st.integers(0, length(codes) - 1))
    return codes, start, draw(st.integers(start + 1, length(codes)))


@st.composite
def codes_and_overlap(draw: st.DrawFn) -> tuple[AudioCodes, AudioCodes, int]:
    first, second = draw(CODES), draw(CODES)
    return first, second, draw(st.integers(1, min(length(first), length(second))))


@pytest.mark.parametrize(
    ("seconds", "n_codes"), [(0, 0), (0.09, 0), (0.1, 1), (0.2, 1), (0.29, 1), (0.3, 2), (2.4, 12), (600, 3_000)]
)
def test_a_time_counts_as_the_nearest_code(seconds: float, n_codes: int) -> None:
    assert n_codes_for(seconds) == n_codes


# Slice and join.


@given(CODES)
def test_a_slice_of_everything_is_everything(codes: AudioCodes) -> None:
    assert excerpt(codes) == excerpt(codes, 0, length(codes)) == codes


@given(codes_and_span())
def test_slices_joined_give_back_the_whole(made: tuple[AudioCodes, int, int]) -> None:
    codes, start, stop = made
    whole = excerpt(codes, start, stop)
    if start:
        whole = join(excerpt(codes, 0, start), whole)
    if stop < length(codes):
        whole = join(whole, excerpt(codes, stop))
    assert whole == codes


# Repeat.


@given(CODES, st.integers(1, 5))
def test_repeating_everything_multiplies_its_length(codes: AudioCodes, times: int) -> None:
    repeated = repeat(codes, times)
    assert length(repeated) == times * length(codes)
    assert repeated.sequences[0] == times * codes.sequences[0]


@given(codes_and_span(), st.integers(1, 5))
def test_a_span_is_repeated_in_its_place(made: tuple[AudioCodes, int, int], times: int) -> None:
    codes, start, stop = made
    repeated = repeat(codes, times, start, stop)
    assert length(repeated) == length(codes) + (times - 1) * (stop - start)
    assert excerpt(repeated, 0, stop) == excerpt(codes, 0, stop)
    assert repeated.sequences[0][stop + (times - 1) * (stop - start) :] == codes.sequences[0][stop:]


@given(codes_and_span())
def test_once_is_no_repetition(made: tuple[AudioCodes, int, int]) -> None:
    codes, start, stop = made
    assert repeat(codes, 1, start, stop) == codes


# Replace.


@given(codes_and_span())
def test_a_span_replaced_by_itself_changes_nothing(made: tuple[AudioCodes, int, int]) -> None:
    codes, start, stop = made
    assert replace(codes, excerpt(codes, start, stop), start, stop) == codes


@given(codes_and_span(), SEQUENCES)
def test_replacing_keeps_the_length_and_all_around(made: tuple[AudioCodes, int, int], other: tuple[int, ...]) -> None:
    codes, start, stop = made
    second = AudioCodes((other * 30,))
    replaced = replace(codes, second, start, stop).sequences[0]
    assert len(replaced) == length(codes)
    assert replaced[:start] + replaced[stop:] == codes.sequences[0][:start] + codes.sequences[0][stop:]
    assert replaced[start:stop] == second.sequences[0][: stop - start]


# Crossfade.


def test_every_code_is_the_nearest_to_its_own_numbers() -> None:
    codes = torch.arange(N_CODES)
    assert torch.equal(nearest(dequantize(codes)), codes)


def test_numbers_between_two_levels_go_to_the_nearer() -> None:
    codes = torch.arange(0, N_CODES, 7)
    step = 2 / (torch.tensor(FSQ_LEVELS) - 1)
    for part in (-0.49, 0.49):
        moved = (dequantize(codes) + part * step).clamp(-1, 1)
        assert torch.equal(nearest(moved), codes)


@given(codes_and_overlap())
def test_a_crossfade_is_as_long_as_both_less_the_overlap_and_exact_around_it(
    made: tuple[AudioCodes, AudioCodes, int],
) -> None:
    first, second, overlap = made
    faded = crossfade(first, second, overlap).sequences[0]
    assert len(faded) == length(first) + length(second) - overlap
    assert faded[: length(first) - overlap] == first.sequences[0][:-overlap]
    assert faded[length(first) :] == second.sequences[0][overlap:]


@given(CODES)
def test_codes_crossfaded_with_themselves_are_themselves(codes: AudioCodes) -> None:
    assert crossfade(codes, codes, length(codes)) == codes


@given(codes_and_overlap())
def test_blended_digits_lie_between_those_they_come_from(made: tuple[AudioCodes, AudioCodes, int]) -> None:
    first, second, overlap = made
    a, b = first.sequences[0][-overlap:], second.sequences[0][:overlap]
    faded = crossfade(AudioCodes((a,)), AudioCodes((b,)), overlap).sequences[0]
    x, y, mixed = (dequantize(torch.tensor(each)) for each in (a, b, faded))
    assert bool((mixed >= torch.minimum(x, y)).all() and (mixed <= torch.maximum(x, y)).all())


def test_a_crossfade_moves_each_digit_by_equal_steps() -> None:
    # The first digit goes from 0 to 7, the fourth from 0 to 4, and the others stay 0.
    a, b = plan(*[0] * 6), plan(*[7 + 4 * 512] * 6)
    faded = crossfade(a, b, 6).sequences[0]
    assert [code % 8 for code in faded] == [1, 2, 3, 4, 5, 6]
    assert [code // 512 % 5 for code in faded] == [1, 1, 2, 2, 3, 3]
    assert {code - code % 8 - code // 512 * 512 for code in faded} == {0}


# Plans.


@pytest.mark.parametrize("edit", [join, lambda a, b: replace(a, b, 0, 1), lambda a, b: crossfade(a, b, 1)])
def test_plans_pair_up_and_a_single_one_is_shared(edit: Callable) -> None:
    several, others, one = AudioCodes(((1, 2), (3, 4, 5))), AudioCodes(((6,), (7, 8))), plan(9, 10)
    for first, second in ((several, others), (several, one), (one, several), (one, one)):
        n_plans = max(first.n_plans, second.n_plans)
        expected = [
            edit(
                AudioCodes((first.sequences[i % first.n_plans],)), AudioCodes((second.sequences[i % second.n_plans],))
            ).sequences[0]
            for i in range(n_plans)
        ]
        assert list(edit(first, second).sequences) == expected


def test_every_plan_is_edited_alike_and_ends_where_it_ends() -> None:
    codes = AudioCodes(((1, 2, 3), (4, 5, 6, 7)))
    assert excerpt(codes, 1).sequences == ((2, 3), (5, 6, 7))
    assert repeat(codes, 2, 2).sequences == ((1, 2, 3, 3), (4, 5, 6, 7, 6, 7))


# What is refused.

TWO = AudioCodes((tuple(range(10)), tuple(range(5))))


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda: excerpt(TWO, 5), "plan 2: the start at 1 s is past the end at 1 s; start earlier"),
        (lambda: excerpt(TWO, 0, 6), "plan 2: the span ends at 1.2 s, the codes at 1 s; end it earlier"),
        (lambda: excerpt(TWO, 3, 3), "plan 1: no code lies between 0.6 s and 0.6 s; end the span later"),
        (lambda: excerpt(TWO, 3, 0), "plan 1: no code lies between 0.6 s and 0 s; end the span later"),
        (lambda: excerpt(TWO, -1), "start must be 0 s or more, got -0.2 s"),
        (lambda: repeat(TWO, 0), "times must be 1 or more, got 0"),
        (lambda: repeat(TWO, 2, 7), "plan 2: the start at 1.4 s is past the end at 1 s; start earlier"),
        (
            lambda: replace(TWO, plan(1, 2), 1, 4),
            "plan 1: 0.6 s are to be replaced, the second codes last 0.4 s; replace less or repeat them first",
        ),
        (
            lambda: crossfade(TWO, TWO, 6),
            "plan 2: an overlap of 1.2 s is longer than the codes, which last 1 s and 1 s; make it shorter",
        ),
        (
            lambda: crossfade(TWO, TWO, 0),
            "a crossfade needs an overlap of at least 0.2 s, got 0 s; make it longer or join instead",
        ),
        (
            lambda: join(TWO, AudioCodes(((1,), (2,), (3,)))),
            "2 plans cannot be paired with 3; use as many of each, or a single one",
        ),
        (lambda: join(TWO, AudioCodes()), 'there are no second codes: connect some to "codes_2"'),
        (lambda: join(TWO, plan()), 'there are no second codes: connect some to "codes_2"'),
        (lambda: join(AudioCodes(), TWO), "there are no codes to edit; plan some first"),
        (lambda: repeat(plan(), 2), "there are no codes to edit; plan some first"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_in_one_sentence(edit: Callable[[], AudioCodes], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        edit()
