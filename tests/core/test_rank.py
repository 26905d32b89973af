"""Scores of takes, and which takes are best."""

from __future__ import annotations

import pytest

from acestep_pack.acestep_core.scoring.lyrics import TimedLine
from acestep_pack.acestep_core.scoring.rank import Weight, mix, pick_best, ranking
from acestep_pack.acestep_core.scoring.score import NamedScore, Score


def score(**named: float) -> Score:
    return Score(tuple(NamedScore(name, value) for name, value in named.items()))


def lyrics_only(*values: float) -> list[Score]:
    return [score(lyrics=value) for value in values]


LYRICS = (Weight("lyrics", 1.0),)


def test_a_mix_is_the_weighted_mean() -> None:
    weights = (Weight("lyrics", 3.0), Weight("plan", 1.0))
    assert mix(score(lyrics=0.8, plan=0.4), weights) == pytest.approx(0.7)


def test_weights_of_scores_that_nobody_made_are_left_out() -> None:
    weights = (Weight("lyrics", 3.0), Weight("plan", 1.0))
    assert mix(score(plan=0.4), weights) == pytest.approx(0.4)
    assert mix(score(plan=0.4), LYRICS) == mix(Score(), weights) == 0.0


@pytest.mark.parametrize(("n_picks", "expected"), [(1, (1,)), (2, (1, 3)), (4, (1, 3, 0, 2))])
def test_the_best_come_first_and_equals_in_their_order(n_picks: int, expected: tuple[int, ...]) -> None:
    assert pick_best(lyrics_only(0.5, 0.9, 0.5, 0.9), LYRICS, n_picks) == expected


def test_takes_without_any_score_that_counts_stay_in_their_order() -> None:
    assert ranking([Score()] * 3, LYRICS) == (0, 1, 2)
    assert ranking(lyrics_only(0.1, 0.9), (Weight("lyrics", 0.0),)) == (0, 1)


@pytest.mark.parametrize("n_picks", [0, 3, -1])
def test_more_picks_than_takes_or_none_are_refused(n_picks: int) -> None:
    with pytest.raises(ValueError, match=f"{n_picks} takes cannot be picked of 2; pick 1 to 2"):
        pick_best(lyrics_only(0.1, 0.2), LYRICS, n_picks)


def test_takes_that_were_not_scored_alike_are_refused_unless_it_does_not_count() -> None:
    scores = [score(lyrics=0.1), score(lyrics=0.2, plan=0.9)]
    with pytest.raises(ValueError, match='take 2 has a score "plan", take 1 has none; score all alike'):
        ranking(scores, (*LYRICS, Weight("plan", 1.0)))
    assert ranking(scores, (*LYRICS, Weight("plan", 0.0))) == (1, 0)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_from_0(weight: float) -> None:
    with pytest.raises(ValueError, match='the weight of "plan" must be 0 or above'):
        Weight("plan", weight)


def test_a_score_grows_and_newer_numbers_replace_older_ones() -> None:
    line = TimedLine("la", 0.0, 1.0, 0.5)
    sung = Score(score(lyrics=0.5).named, (line,))
    grown = sung.extended(score(plan=0.7)).extended(score(lyrics=0.6))
    assert (grown.names, grown.value("lyrics"), grown.value("plan")) == (("plan", "lyrics"), 0.6, 0.7)
    assert grown.lines == (line,)
    assert grown.value("tempo") is None


def test_scores_are_numbers_under_names_of_their_own() -> None:
    with pytest.raises(ValueError, match='score "lyrics" must be a number, got nan'):
        score(lyrics=float("nan"))
    with pytest.raises(ValueError, match="each score of a take needs a name of its own, got a, a"):
        Score((NamedScore("a", 0.1), NamedScore("a", 0.2)))
