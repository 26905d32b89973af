"""Scores of whole batches: merged in either order, picked, joined, and their weak lines as times and masks."""

from __future__ import annotations

import pytest
import torch

from acestep_pack.acestep_core.constants import FRAME_RATE
from acestep_pack.acestep_core.scoring.lyrics import TimedLine, TimedWord
from acestep_pack.acestep_core.scoring.score import (
    NamedScore,
    Score,
    Scores,
    joined,
    time_mask,
    weak_lines,
    weakest_line,
)

N_FRAMES = 250


def score(*lines: TimedLine, **named: float) -> Score:
    return Score(tuple(NamedScore(name, value) for name, value in named.items()), lines)


def line(text: str, start_s: float, end_s: float, confidence: float, is_tag: bool = False) -> TimedLine:
    return TimedLine(text, start_s, end_s, confidence, is_tag=is_tag)


def of_takes(*values: float, plans: tuple[int, ...] = (), n_frames: int = N_FRAMES) -> Scores:
    return Scores(tuple(score(lyrics=value) for value in values), plans or (0,) * len(values), n_frames)


def of_plans(*values: float) -> Scores:
    return Scores(tuple(score(plan=value) for value in values), tuple(range(len(values))))


def table(scores: Scores) -> list[dict[str, float]]:
    """Return the named scores of each take."""
    return [{name: take.value(name) for name in take.names} for take in scores.takes]


# Merging.


def test_scores_of_the_same_takes_are_merged_one_by_one() -> None:
    more = Scores((score(plan=0.3), score(plan=0.4)), (0, 0), N_FRAMES)
    both = of_takes(0.1, 0.2).extended(more)
    assert table(both) == [{"lyrics": 0.1, "plan": 0.3}, {"lyrics": 0.2, "plan": 0.4}]
    assert (both.plans, both.n_frames) == ((0, 0), N_FRAMES)


def test_of_equal_names_the_new_one_counts() -> None:
    assert table(of_takes(0.1).extended(of_takes(0.9))) == [{"lyrics": 0.9}]


def test_scores_of_plans_go_to_the_takes_sung_from_them_in_either_order() -> None:
    takes, plans = of_takes(0.1, 0.2, 0.3, plans=(0, 0, 1)), of_plans(0.6, 0.7)
    for both in (takes.extended(plans), plans.extended(takes)):
        assert [take["plan"] for take in table(both)] == [0.6, 0.6, 0.7]
        assert [take["lyrics"] for take in table(both)] == [0.1, 0.2, 0.3]
        assert (both.plans, both.n_frames) == ((0, 0, 1), N_FRAMES)


def test_the_score_of_a_single_plan_is_every_takes() -> None:
    assert [take["plan"] for take in table(of_takes(0.1, 0.2, plans=(0, 4)).extended(of_plans(0.6)))] == [0.6, 0.6]


def test_a_merge_leaves_both_as_they_were_and_twice_is_once() -> None:
    takes, plans = of_takes(0.1, plans=(1,)), of_plans(0.6, 0.7)
    both = takes.extended(plans)
    assert table(takes) == [{"lyrics": 0.1}]
    assert both.extended(plans) == both
    assert both.extended(both) == both


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (
            of_takes(0.1),
            of_takes(0.1, 0.2),
            "scores of 1 take of 10 s and of 2 takes of 10 s are not of the same takes",
        ),
        (of_takes(0.1), of_takes(0.1, n_frames=300), "scores of 1 take of 10 s and of 1 take of 12 s are not"),
        (of_takes(0.1), of_takes(0.1, plans=(1,)), "scores of 1 take of 10 s each, of other plans are not of the same"),
        (of_plans(0.1, 0.2), of_plans(0.1), "scores of 1 plan and of 2 plans are not of the same takes"),
    ],
)
def test_scores_of_other_takes_are_refused_in_either_order(first: Scores, second: Scores, sentence: str) -> None:
    for one, other in ((first, second), (second, first)):
        with pytest.raises(ValueError, match=sentence):
            one.extended(other)


def test_a_take_of_a_plan_that_was_not_scored_is_refused() -> None:
    takes, plans = of_takes(0.1, 0.2, plans=(0, 2)), of_plans(0.6, 0.7)
    for one, other in ((takes, plans), (plans, takes)):
        with pytest.raises(
            ValueError, match="take 2 was sung from plan 3, but the score is of 2 plans; score the codes"
        ):
            one.extended(other)


# Items of a batch.


def test_items_of_a_batch_have_their_own_scores_and_those_of_their_plan() -> None:
    assert of_takes(0.1, 0.2).of_items([None, None]) == of_takes(0.1, 0.2).takes
    plans = of_plans(0.6, 0.7)
    assert plans.of_items([1, 0]) == plans.takes[::-1]
    with pytest.raises(ValueError, match="nobody knows from which of the 2 plans of this score take 2 was sung"):
        plans.of_items([1, None])
    assert of_plans(0.6).of_items([None, 3]) == of_plans(0.6).takes * 2


def test_another_number_of_items_is_refused() -> None:
    with pytest.raises(ValueError, match="the score is of 2 takes of 10 s, not of 3; connect the one made of them"):
        of_takes(0.1, 0.2).of_items([0, 0, 0])


# Picking.


def test_picked_takes_keep_their_scores_and_plans_in_the_order_of_the_picks() -> None:
    scores = of_takes(0.1, 0.2, 0.3, plans=(0, 1, 2))
    assert scores.picked((2, 0)) == of_takes(0.3, 0.1, plans=(2, 0))
    assert scores.picked((2, 0), (0, 1)) == of_takes(0.3, 0.1, plans=(0, 1))


def test_joined_batches_are_one_after_another() -> None:
    assert joined([of_takes(0.1, plans=(3,)), of_takes(0.2, 0.3, plans=(0, 1))]) == of_takes(
        0.1, 0.2, 0.3, plans=(3, 0, 1)
    )


def test_takes_of_different_length_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"takes of 10 s and 12 s do not go into one batch; pick among takes of one"):
        joined([of_takes(0.1), of_takes(0.1, n_frames=300)])


def test_each_score_needs_a_plan_and_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="1 scores came with 2 plans; give the plan of each"):
        Scores((Score(),), (0, 1))
    with pytest.raises(ValueError, match="there are no takes to keep scores of"):
        Scores((), ())


# Weak lines.

SUNG = score(
    line("[Verse]", 0.0, 0.5, 0.1, is_tag=True),
    line("one", 0.5, 2.0, 0.3),
    line("two", 2.0, 4.0, 0.5),
    line("three", 4.0, 6.0, 0.2),
    line("four", 6.0, 10.0, 0.9),
)


@pytest.mark.parametrize(
    ("threshold", "most", "found"),
    [
        (0.5, 0, ["one", "three"]),
        (0.51, 0, ["one", "two", "three"]),
        (0.5, 1, ["three"]),
        (1.0, 2, ["one", "three"]),
        (1.0, 9, ["one", "two", "three", "four"]),
        (0.1, 0, []),
    ],
)
def test_weak_lines_are_the_worst_below_the_threshold_in_their_order(
    threshold: float, most: int, found: list[str]
) -> None:
    assert [each.text for each in weak_lines(SUNG, threshold, most)] == found


def test_the_weakest_line_is_no_tag_and_may_be_none() -> None:
    assert weakest_line(SUNG).text == "three"
    assert weakest_line(Score()) is None
    assert weakest_line(score(line("[Solo]", 0, 1, 0.0, is_tag=True))) is None


@pytest.mark.parametrize(
    ("spans", "padding_s", "frames"),
    [
        ([(2.0, 4.0)], 0.0, [(50, 100)]),
        ([(2.0, 4.0)], 0.25, [(43, 107)]),
        ([(0.0, 0.08), (9.92, 10.0)], 0.5, [(0, 15), (235, 250)]),
        ([(0.56, 0.64)], 0.0, [(14, 16)]),
        ([(2.01, 3.99)], 0.0, [(50, 100)]),
        ([(1.0, 2.0), (1.5, 3.0)], 0.0, [(25, 75)]),
        ([(-2.0, -1.0), (11.0, 12.0)], 0.25, []),
        ([], 0.25, []),
    ],
)
def test_a_mask_is_1_where_a_line_is_sung_and_nowhere_else(
    spans: list[tuple[float, float]], padding_s: float, frames: list[tuple[int, int]]
) -> None:
    mask = time_mask([line("", start_s, end_s, 0.1) for start_s, end_s in spans], N_FRAMES, padding_s)
    expected = torch.zeros(N_FRAMES)
    for start, stop in frames:
        expected[start:stop] = 1
    assert torch.equal(mask, expected)


def test_every_line_of_whole_frames_is_exactly_those_frames() -> None:
    for start in range(N_FRAMES - 2):
        mask = time_mask([line("", start * (1 / FRAME_RATE), (start + 2) * (1 / FRAME_RATE), 0.1)], N_FRAMES)
        assert mask.nonzero().flatten().tolist() == [start, start + 1]


# Parts of a longer take.


def test_a_score_of_a_part_moves_with_its_lines_and_words_and_keeps_the_rest() -> None:
    word = TimedWord("Hi", 1.0, 1.5)
    sung = score(TimedLine("Hi", 1.0, 2.0, 0.7, (word,), "Verse"), lyrics=0.4)
    (moved,) = sung.later(10.0).lines
    assert moved == TimedLine("Hi", 11.0, 12.0, 0.7, (TimedWord("Hi", 11.0, 11.5),), "Verse")
    assert sung.later(10.0).named == sung.named
    assert sung.later(10.0).later(-10.0) == sung
