"""From attention to time: which frame sings which lyric token.

Attention of several heads becomes one matrix [N tokens, F frames], and dynamic time warping finds the best
path through it, from the first token at the first frame to the last at the last. A path visits every token
and every frame and never goes back. What tokens say is for `lyrics`, how good a path is for `metrics`.
Source: ace-step/ACE-Step-1.5, `acestep/core/scoring/dit_alignment.py`, `dit_score.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VIOLENCE = 2.0  # how many medians a cell must stand above its row, then its column
EPSILON = 1e-9
LEFT, DIAGONAL, UP = 0, 1, 2  # the next frame of a token, both, the next token within a frame

Floats = NDArray[np.float32]
Moves = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Path:
    """The cells a warp goes through, in order: tokens [S] and frames [S], neither ever falling."""

    tokens: NDArray[np.int64]
    frames: NDArray[np.int64]

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last frame of every token."""
        numbers = np.arange(self.tokens[-1] + 1)
        first = self.frames[np.searchsorted(self.tokens, numbers, "left")]
        last = self.frames[np.searchsorted(self.tokens, numbers, "right") - 1]
        return first, last


def energy(attention: Tensor) -> Tensor:
    """Return the heads' mean [N, F] of attention [H, N, F], stretched to 0..1; zeros where it is flat."""
    mean = attention.float().mean(0)
    low, high = mean.aminmax()
    return (mean - low) / (high - low) if high - low > EPSILON else torch.zeros_like(mean)


def consensus(attention: Tensor) -> Tensor:
    """Return where frames and tokens agree on each other [N, F], from attention [H, N, F].

    Once more a softmax over frames times one over tokens; what does not stand out of its row and column
    becomes 0; then squared, and measured in deviations from the mean of all heads. A head is worked on at a
    time: being an affine map, the last step can wait for their mean.
    """
    n_heads = len(attention)
    total = torch.zeros(attention.shape[1:])
    squares = 0.0
    for head in attention:
        found = _agreement(head.float())
        total += found
        squares += float(found.double().square().sum())
    mean = float(total.double().sum()) / attention.numel()
    deviation = max(squares / attention.numel() - mean * mean, 0.0) ** 0.5
    return (total / n_heads - mean) / (deviation + EPSILON)


def warp(gain: Tensor, official_ties: bool = False) -> Path:
    """Return the path of the largest sum through gain [N, F].

    Between equals it comes from the left (the frame before), then the diagonal, then from above (the token
    before). official_ties: the official rule instead, which comes from the left whenever two are equal, even
    where the third is better.

    Cells on an anti-diagonal do not depend on each other, so each is one step; only two are kept, and a byte a
    cell for the way back. Raises ValueError for an empty matrix.
    """
    n_tokens, n_frames = gain.shape
    if not gain.numel():
        raise ValueError(f"there is nothing to align between {n_tokens} tokens and {n_frames} frames")
    cost = np.negative(gain.float().cpu().numpy()).ravel()
    moves = np.zeros((n_tokens + n_frames - 1, n_tokens), np.uint8)
    choose = _official_choice if official_ties else _choice
    # Sums of the two anti-diagonals before, by token, and of this one; [0] is the border before the first token.
    before, previous, now = (np.full(n_tokens + 1, np.inf, np.float32) for _ in range(3))
    previous[1] = cost[0]
    for k in range(1, len(moves)):
        low, high = max(0, k - n_frames + 1), min(n_tokens, k + 1)
        left, up, diagonal = previous[low + 1 : high + 1], previous[low:high], before[low:high]
        best = choose(left, diagonal, up, moves[k, low:high])
        np.add(best, _anti_diagonal(cost, k, low, high, n_frames), out=now[low + 1 : high + 1])
        before, previous, now = previous, now, before
    return _way_back(moves, n_tokens, n_frames)


def _choice(left: Floats, diagonal: Floats, up: Floats, moves: Moves) -> Floats:
    """Return the least of three, and write which it is; equals in the order left, diagonal, up."""
    best: Floats = np.minimum(left, diagonal)
    moves[:] = diagonal < left
    moves[up < best] = UP
    return np.minimum(best, up, out=best)


def _official_choice(left: Floats, diagonal: Floats, up: Floats, moves: Moves) -> Floats:
    """Return the diagonal or up where it is less than both others, else the left, and write which."""
    moves[(diagonal < left) & (diagonal < up)] = DIAGONAL
    moves[(up < left) & (up < diagonal)] = UP
    return np.where(moves == DIAGONAL, diagonal, np.where(moves == UP, up, left))


def _anti_diagonal(cost: Floats, k: int, low: int, high: int, n_frames: int) -> Floats:
    """Return cells (i, k − i) for i from low to high of a flattened matrix: every (n_frames − 1)th number."""
    stride = max(1, n_frames - 1)
    start = low * n_frames + k - low
    return cost[start : start + (high - low - 1) * stride + 1 : stride]


def _way_back(moves: Moves, n_tokens: int, n_frames: int) -> Path:
    """Return the path that moves, kept by anti-diagonal and token, lead back along."""
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
    """Return what stands out of both its row and its column [N, F], squared."""
    # One exponential serves both softmaxes; attention is at most 1, so it needs no maximum taken off.
    powers = head.exp()
    found = powers * powers / powers.sum(1, keepdim=True) / powers.sum(0, keepdim=True)
    found = (found - VIOLENCE * _row_medians(found)[:, None]).relu_()
    return (found - VIOLENCE * _row_medians(found.mT)).relu_().square_()


def _row_medians(x: Tensor) -> Tensor:
    """Return each row's median of x [R, n], none of it negative; of an even number the mean of the middle two.

    A row of which more than half are zeros has the median 0, and is not sorted.
    """
    n = x.shape[1]
    medians = torch.zeros(len(x))
    sorted_rows = (x.count_nonzero(1) >= n - n // 2).nonzero().flatten()
    if len(sorted_rows):
        medians[sorted_rows] = torch.from_numpy(np.median(x[sorted_rows].numpy(), axis=1))
    return medians
