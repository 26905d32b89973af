"""From attention to paths and numbers: against plain loops, brute force, and diagonals planted by hand."""

from __future__ import annotations

import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep_pack.acestep_core.scoring.alignment import Path, consensus, dtw_path, energy
from acestep_pack.acestep_core.scoring.lyric_score import score_lyrics, score_planned_lyrics
from acestep_pack.acestep_core.scoring.lyrics import Lyrics
from acestep_pack.acestep_core.scoring.metrics import Metrics, measure
from golden_models import assert_close

# The example that was worked out by hand: three tokens, four frames.
EXAMPLE = torch.tensor([[0.8, 0.6, 0.1, 0.0], [0.1, 0.2, 0.7, 0.1], [0.0, 0.1, 0.2, 0.9]])
EXAMPLE_PATH = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3)]

LEFT, DIAGONAL, UP = range(3)


def cells(path: Path) -> list[tuple[int, int]]:
    return list(zip(path.tokens.tolist(), path.frames.tolist(), strict=True))


def random_attention(n_heads: int, n_tokens: int, n_frames: int, seed: int = 0) -> Tensor:
    """Attention that falls on few tokens, as real heads' does."""
    scores = 4 * torch.randn(n_heads, n_tokens, n_frames, generator=torch.Generator().manual_seed(seed))
    return scores.softmax(1)


def planted(bounds: list[int], n_heads: int = 3, noise: float = 0.02, seed: int = 0) -> Tensor:
    """Attention [H, N, F] of tokens that sing from one bound to the next."""
    attention = noise * torch.rand(n_heads, len(bounds) - 1, bounds[-1], generator=torch.Generator().manual_seed(seed))
    for token, (start, end) in enumerate(pairwise(bounds)):
        attention[:, token, start:end] += 0.9
    return attention


# Slow, obvious versions.


def slow_consensus(attention: Tensor) -> Tensor:
    """Return the consensus step by step, as it is told."""
    n_heads, n_tokens, n_frames = attention.shape
    numbers = attention.double().numpy()
    found = np.zeros(numbers.shape)
    for h in range(n_heads):
        for i in range(n_tokens):
            for f in range(n_frames):
                over_frames = np.exp(numbers[h, i, f]) / sum(np.exp(numbers[h, i, g]) for g in range(n_frames))
                over_tokens = np.exp(numbers[h, i, f]) / sum(np.exp(numbers[h, j, f]) for j in range(n_tokens))
                found[h, i, f] = over_frames * over_tokens
        for i in range(n_tokens):
            middle = statistics.median(found[h, i])
            found[h, i] = [max(0.0, x - 2 * middle) for x in found[h, i]]
        for f in range(n_frames):
            middle = statistics.median(found[h, :, f])
            found[h, :, f] = [max(0.0, x - 2 * middle) for x in found[h, :, f]]
    found = found**2
    found = (found - found.mean()) / (found.std() + 1e-9)
    return torch.from_numpy(found.mean(0))


def slow_dtw(gain: np.ndarray, official_ties: bool) -> list[tuple[int, int]]:
    """Return a path by two nested loops over float32, one cell at a time."""
    n_tokens, n_frames = gain.shape
    sums = np.full((n_tokens + 1, n_frames + 1), np.inf, np.float32)
    moves = np.zeros((n_tokens + 1, n_frames + 1), int)
    sums[0, 0] = 0
    for f in range(1, n_frames + 1):
        for i in range(1, n_tokens + 1):
            left, diagonal, up = sums[i, f - 1], sums[i - 1, f - 1], sums[i - 1, f]
            if official_ties:
                move = DIAGONAL if diagonal < up and diagonal < left else UP if up < diagonal and up < left else LEFT
            else:
                move = min((LEFT, DIAGONAL, UP), key=(left, diagonal, up).__getitem__)
            moves[i, f] = move
            sums[i, f] = np.float32(-gain[i - 1, f - 1]) + (left, diagonal, up)[move]
    i, f = n_tokens, n_frames
    path = [(i - 1, f - 1)]
    while (i, f) != (1, 1):
        move = moves[i, f]
        i, f = i - (move != LEFT), f - (move != UP)
        path.append((i - 1, f - 1))
    return path[::-1]


def every_path(n_tokens: int, n_frames: int) -> list[list[tuple[int, int]]]:
    """Return all paths from the last cell to the first, each backwards, moves in the order left, diagonal, up."""
    if n_tokens == n_frames == 1:
        return [[(0, 0)]]
    tails = []
    for tokens, frames in ((n_tokens, n_frames - 1), (n_tokens - 1, n_frames - 1), (n_tokens - 1, n_frames)):
        if tokens and frames:
            tails += every_path(tokens, frames)
    return [[(n_tokens - 1, n_frames - 1), *tail] for tail in tails]


def slow_metrics(seen: list[list[float]], path: list[tuple[int, int]], sung: list[bool]) -> Metrics:
    rows = [row for row, is_sung in zip(seen, sung, strict=True) if is_sung]
    covered = [max(row) > 0.1 for row in rows]
    centres = []
    for row in rows:
        weights = [x if x > 0.01 else 0.0 for x in row]
        if sum(weights) > 1e-9:
            centres.append(sum(f * w for f, w in enumerate(weights)) / sum(weights))
    pairs = [later >= earlier - 9 for earlier, later in pairwise(centres)]
    return Metrics(
        coverage=sum(covered) / len(covered) if covered else 1.0,
        monotonicity=sum(pairs) / len(pairs) if pairs else 1.0,
        confidence=sum(seen[i][f] for i, f in path) / len(path),
    )


# The matrix.


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (2, 5, 8), (3, 8, 5), (2, 6, 7), (4, 1, 9), (2, 9, 1)])
def test_consensus_equals_the_slow_one(shape: tuple[int, int, int]) -> None:
    attention = random_attention(*shape, seed=sum(shape))
    expected = slow_consensus(attention)
    if expected.abs().max() < 1e-6:
        assert consensus(attention).abs().max() < 1e-3
    else:
        assert_close(consensus(attention), expected, 1e-4)


def test_consensus_of_the_example_is_as_worked_out_by_hand() -> None:
    low = -0.3649
    expected = torch.tensor([[-0.3388, low, low, low], [low, low, 0.3750, low], [low, low, low, 3.2475]])
    found = consensus(EXAMPLE[None])
    assert torch.allclose(found, expected, atol=1e-4)
    assert cells(dtw_path(found)) == [(0, 0), (1, 1), (1, 2), (2, 3)]


def test_energy_goes_from_0_to_1_and_is_0_where_attention_is_flat() -> None:
    assert torch.allclose(energy(EXAMPLE[None]), EXAMPLE / 0.9)
    assert not energy(torch.full((2, 3, 4), 0.25)).any()


def test_consensus_leaves_attention_alone() -> None:
    attention = random_attention(2, 5, 6)
    before = attention.clone()
    consensus(attention)
    assert torch.equal(attention, before)


# The path.


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_the_path_equals_brute_force_and_ties_go_left_then_diagonal_then_up(
    n_tokens: int, n_frames: int, data: st.DataObject
) -> None:
    # Whole numbers, so that sums are exact and ties frequent.
    size = n_tokens * n_frames
    numbers = data.draw(st.lists(st.integers(-2, 3), min_size=size, max_size=size))
    gain = np.array(numbers).reshape(n_tokens, n_frames)
    paths = every_path(n_tokens, n_frames)
    best = max(sum(gain[cell] for cell in path) for path in paths)
    expected = next(path for path in paths if sum(gain[cell] for cell in path) == best)
    assert cells(dtw_path(torch.from_numpy(gain))) == expected[::-1]


@pytest.mark.parametrize("official_ties", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (13, 40), (40, 13), (31, 31)])
def test_the_path_equals_the_loop_over_cells(shape: tuple[int, int], official_ties: bool) -> None:
    for seed, levels in ((1, 3), (2, 1_000_000)):  # many ties, hardly any
        gain = torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)) / levels
        assert cells(dtw_path(gain, official_ties)) == slow_dtw(gain.numpy(), official_ties)


def test_the_official_tie_rule_may_miss_the_best_path_and_ours_does_not() -> None:
    # At the last cell the diagonal and up are equal, and both better than the left.
    gain = torch.tensor([[-2.0, 0.0], [-2.0, -2.0]])
    assert cells(dtw_path(gain)) == [(0, 0), (1, 1)]
    assert cells(dtw_path(gain, official_ties=True)) == [(0, 0), (1, 0), (1, 1)]


def test_the_path_of_the_example_is_as_worked_out_by_hand() -> None:
    assert cells(dtw_path(energy(EXAMPLE[None]).square())) == EXAMPLE_PATH


@pytest.mark.parametrize("shape", [(5, 200), (200, 5), (64, 64)])
def test_a_path_meets_every_token_and_frame_and_never_turns_back(shape: tuple[int, int]) -> None:
    path = dtw_path(torch.rand(shape, generator=torch.Generator().manual_seed(3)))
    assert set(path.tokens.tolist()) == set(range(shape[0]))
    assert set(path.frames.tolist()) == set(range(shape[1]))
    steps = np.stack((np.diff(path.tokens), np.diff(path.frames)))
    assert steps.min() == 0
    assert steps.max() == 1
    assert steps.sum(0).min() == 1


def test_nothing_cannot_be_aligned() -> None:
    with pytest.raises(ValueError, match="there is nothing to align between 0 tokens and 5 frames"):
        dtw_path(torch.zeros(0, 5))


# What comes of it.


@pytest.mark.parametrize("seed", range(5))
def test_planted_diagonals_give_their_times_back_within_one_frame(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 30, (40,), generator=generator)
    bounds = [0, *lengths.cumsum(0).tolist()]
    first, last = dtw_path(consensus(planted(bounds, seed=seed))).spans()
    assert np.abs(first - bounds[:-1]).max() <= 1
    assert np.abs(last + 1 - bounds[1:]).max() <= 1


def test_spans_are_each_tokens_first_and_last_frame() -> None:
    first, last = Path(*np.array(EXAMPLE_PATH).T).spans()
    assert first.tolist() == [0, 1, 2]
    assert last.tolist() == [1, 2, 3]


def test_the_score_of_the_example_is_as_worked_out_by_hand() -> None:
    seen = energy(EXAMPLE[None])
    metrics = measure(seen, dtw_path(seen.square()), [True] * 3)
    assert (metrics.coverage, metrics.monotonicity) == (1.0, 1.0)
    assert metrics.confidence == pytest.approx(0.6296, abs=1e-4)
    assert metrics.score == 0.6296
    assert Metrics(9 / 10, 8 / 9, 0.6296).score == 0.4029


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_the_slow_ones(seed: int) -> None:
    seen = energy(random_attention(2, 24, 60, seed))
    seen[3] = 0  # a token that is heard nowhere
    path = dtw_path(seen.square())
    sung = [index % 5 != 0 for index in range(24)]
    found, expected = measure(seen, path, sung), slow_metrics(seen.double().tolist(), cells(path), sung)
    assert found.coverage == pytest.approx(expected.coverage)
    assert found.monotonicity == pytest.approx(expected.monotonicity)
    assert found.confidence == pytest.approx(expected.confidence)


def test_with_tags_alone_coverage_and_monotonicity_are_whole() -> None:
    seen = energy(EXAMPLE[None])
    metrics = measure(seen, dtw_path(seen.square()), [False] * 3)
    assert (metrics.coverage, metrics.monotonicity) == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_song_scores_lower_than_a_straight_one(seed: int) -> None:
    attention = planted([*range(0, 301, 10)], seed=seed)
    lyrics = Lyrics(tuple(" la" for _ in range(30)))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    straight, shuffled = (score_lyrics(a, lyrics, 24.0).score for a in (attention, attention[:, order]))
    assert straight.value("lyrics") > 0.8
    assert shuffled.value("lyrics") < straight.value("lyrics") / 2
    worst = min(line.confidence for line in straight.lines)
    assert worst > sum(line.confidence for line in shuffled.lines) / len(shuffled.lines)


def test_what_pure_noise_foretells_is_the_same_number_under_its_own_name() -> None:
    attention, lyrics = planted([0, 10, 20, 30]), Lyrics((" la",) * 3)
    sung = score_lyrics(attention, lyrics, 2.4).score
    assert score_planned_lyrics(attention, lyrics).value("lyrics_planned") == sung.value("lyrics")


def test_lyrics_of_another_length_than_the_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="the lyrics have 2 tokens, the attention 3; score them with the conditioning"):
        score_lyrics(EXAMPLE[None], Lyrics((" a", " b")), 1.0)
