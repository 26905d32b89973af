"""A part of a song as a mask over its frames: 1 generates, 0 keeps, with ramps between."""

from __future__ import annotations

import torch
from torch import Tensor

from ..constants import FRAME_RATE, frame_at


def region(n_frames: int, start_s: float, end_s: float = 0.0, feather_s: float = 0.0, invert: bool = False) -> Tensor:
    """Return a mask [1, n_frames], 1 from start_s to end_s, where 0 is the end of the song; at least one frame.

    feather_s: length of the ramps down to 0. They lie outside the region, so that all of it is generated, and are cut
    at the ends of the song. invert: generate everything else instead.
    Raises ValueError for a region that is empty or not inside the song.
    """
    end_of_song_s = n_frames / FRAME_RATE
    stop_s = end_s or end_of_song_s
    start, stop = frame_at(start_s), frame_at(stop_s)
    if start_s < 0 or feather_s < 0:
        raise ValueError(f"start and feather must be 0 s or more, got {start_s:g} s and {feather_s:g} s")
    if start >= n_frames or stop > n_frames:
        raise ValueError(
            f"the region from {start_s:g} s to {stop_s:g} s is past the end of the latent at {end_of_song_s:g} s; "
            "move it inside, or set its end to 0 for the end of the latent"
        )
    if stop_s <= start_s:
        raise ValueError(f"the region from {start_s:g} s to {stop_s:g} s is empty; set its end after its start")
    frames = torch.arange(n_frames)
    outside = torch.maximum(start - frames, frames - (max(stop, start + 1) - 1)).clamp(min=0)
    mask = (1 - outside / (frame_at(feather_s) + 1)).clamp(min=0)[None]
    return 1 - mask if invert else mask
