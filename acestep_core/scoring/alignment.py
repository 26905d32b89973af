"""Aligns lyric tokens with latent frames: which frame sings which token.

The attention of several heads becomes one matrix [N tokens, F frames], and dynamic time warping (DTW) finds the best
path through it, from the first token at the first frame to the last token at the last frame. A path visits every
token and every frame and never goes back. `lyrics` knows the words of the tokens, `metrics` rates a path.
Source: ace-step/ACE-Step-1.5, `acestep/core/scoring/dit_alignment.py`, `dit_score.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VIOLENCE = 2.0  # the official name: medians subtracted from every cell, of its row, then of its column
EPSILON = 1e-9  # the official code's guard against dividing by zero; also for `metrics`
LEFT, DIAGONAL, UP = 0, 1, 2  # the next frame of a token, both, the next token within a frame

Floats = NDArray[np.float32]
Moves = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Path:
    """The S cells of an alignment in order; neither index ever falls."""

    tokens: NDArray[np.int64]  # [S]
    frames: NDArray[np.int64]  # [S]

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last frame of every token."""
        numbers = np.arange(self.tokens[-1] + 1)
        first = self.frames[np.searchsorted(self.tokens, numbers, "left")]
        last = self.frames[np.searchsorted(self.tokens, numbers, "right") - 1]
        return first, last


def energy(attention: Tensor) -> Tensor:
    """Return the mean over heads [N, F] of attention [H, N, F], scaled to 0..1; all zeros if it is constant."""
    mean = attention.float().mean(0)
    low, high = mean.aminmax()
    return (mean - low) / (high - low) if high - low > EPSILON else torch.zeros_like(mean)


def consensus(attention: Tensor) -> Tensor:
    """Return how strongly each token and frame choose one another [N, F], from attention [H, N, F].

    For each head: the softmax over frames times the softmax over tokens, less the medians of row and column, squared.
    Then the mean over heads, in standard deviations from the mean of all cells of all heads. That last step is affine,
    so it is applied to the mean, and only one head is in memory at a time.
    """
    n_heads = len(attention)
    total = torch.zeros(attention.shape[1:])
    squares = 0.0
    for head in attention:
        agreement = _agreement(head.float())
        total += agreement
        squares += float(agreement.double().square().sum())
    mean = float(total.double().sum()) / attention.numel()
    deviation = max(squares / attention.numel() - mean * mean, 0.0) ** 0.5
    return (total / n_heads - mean) / (deviation + EPSILON)


def dtw_path(gain: Tensor, official_ties: bool = False) -> Path:
    """Return the path through gain [N, F] with the largest sum.

    Ties go to the left (the frame before), then the diagonal, then up (the token before). official_ties: the official
    rule instead, which goes left whenever two of the three are equal, even if the third is better.

    Cells on an anti-diagonal do not depend on one another, so each anti-diagonal is one vector operation. Memory holds
    the sums of three, and one byte per cell for tracing the path back. Raises ValueError for an empty matrix.
    """
    n_tokens, n_frames = gain.shape
    if not gain.numel():
        raise ValueError(f"there is nothing to align between {n_tokens} tokens and {n_frames} frames")
    cost = np.negative(gain.float().cpu().numpy()).ravel()
    moves = np.zeros((n_tokens + n_frames - 1, n_tokens), np.uint8)
    choose = _official_choice if official_ties else _choice
    # Sums by token, of the two previous anti-diagonals and this one; [0] is the border before the first token.
    before, previous, now = (np.full(n_tokens + 1, np.inf, np.float32) for _ in range(3))
    previous[1] = cost[0]
    for k in range(1, len(moves)):
        low, high = max(0, k - n_frames + 1), min(n_tokens, k + 1)
        left, up, diagonal = previous[low + 1 : high + 1], previous[low:high], before[low:high]
        best = choose(left, diagonal, up, moves[k, low:high])
        np.add(best, _anti_diagonal(cost, k, low, high, n_frames), out=now[low + 1 : high + 1])
        before, previous, now = previous, now, before
    return _trace_back(moves, n_tokens, n_frames)


def _choice(left: Floats, diagonal: Floats, up: Floats, moves: Moves) -> Floats:
    """Return the least of three costs and write the move to it; ties in the order left, diagonal, up."""
    best: Floats = np.minimum(left, diagonal)
    moves[:] = diagonal < left
    moves[up < best] = UP
    return np.minimum(best, up, out=best)


def _official_choice(left: Floats, diagonal: Floats, up: Floats, moves: Moves) -> Floats:
    """Return the diagonal or up cost where it is less than both others, else the left one, and write the move."""
    moves[(diagonal < left) & (diagonal < up)] = DIAGONAL
    moves[(up < left) & (up < diagonal)] = UP
    return np.where(moves == DIAGONAL, diagonal, np.where(moves == UP, up, left))


def _anti_diagonal(cost: Floats, k: int, low: int, high: int, n_frames: int) -> Floats:
    """Return the cells (i, k − i), low ≤ i < high, of a flattened matrix: every (n_frames − 1)th number."""
    stride = max(1, n_frames - 1)
    start = low * n_frames + k - low
    return cost[start : start + (high - low - 1) * stride + 1 : stride]


def _trace_back(moves: Moves, n_tokens: int, n_frames: int) -> Path:
    """Return the path, read backwards from moves [anti-diagonal, token]."""
    token, frame = n_tokens - 1, n_frames - 1
    cells = [(token, frame)]
    while token or frame:
        move = moves[token + frame, token]
        token -= move != LEFT
        frame -= move != UP
        cells.append((token, frame))
    tokens, frames = np.array(cells[::-1], np.int64).T
    return Path(tokens, frames)


def _agreement(head: Tensor) -> Tensor:
    """Return one head's part of the consensus [N, F]."""
    # One exponential serves both softmaxes. Attention is at most 1, so exp cannot overflow: no max is subtracted.
    powers = head.exp()
    product = powers * powers / powers.sum(1, keepdim=True) / powers.sum(0, keepdim=True)
    product = (product - VIOLENCE * _row_medians(product)[:, None]).relu_()
    return (product - VIOLENCE * _row_medians(product.mT)).relu_().square_()


def _row_medians(x: Tensor) -> Tensor:
    """Return the median of each row of x [R, n] ≥ 0; for even n the mean of the middle two.

    A row with more than half zeros has median 0 and is not sorted.
    """
    n = x.shape[1]
    medians = torch.zeros(len(x))
    sorted_rows = (x.count_nonzero(1) >= n - n // 2).nonzero().flatten()
    if len(sorted_rows):
        medians[sorted_rows] = torch.from_numpy(np.median(x[sorted_rows].numpy(), axis=1))
    return medians
