"""Pictures that nodes show: lanes over one time axis, such as a waveform with the part to generate lit up.

A lane is an array [height, LANE_WIDTH, 3] of colours from 0 to 1. `draw` puts lanes one below the other and
the seconds under them; what a lane shows is the business of whoever paints it. Colours are for a dark canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

LANE_WIDTH = 960
MARGIN = 20
GAP = 8  # between lanes, and above the first
AXIS_HEIGHT = 40
FONT_SIZE = 24  # legible on a node a third as wide as the picture
LABEL_SPACE = 90  # least distance between two labels
TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
WAVE_HEIGHT = 150
LINE_WIDTH = 3
FULL = 0.94  # of half a lane is what the loudest sample reaches
LOUDNESS_SAMPLES = 1_024  # of a column are enough to tell how loud it is

BACKGROUND = np.array((0.086, 0.094, 0.114))
LANE = np.array((0.125, 0.137, 0.165))
LABEL = (168, 176, 192)
KEPT = np.array((0.355, 0.400, 0.480))
LIT_LANE = np.array((0.255, 0.190, 0.110))
LIT = np.array((0.930, 0.590, 0.190))
EDGE = np.array((1.000, 0.800, 0.480))
LOUD = 0.35  # how far the loud core of a waveform is towards white


def draw(lanes: Sequence[np.ndarray], duration_s: float) -> torch.Tensor:
    """Return a picture [1, H, W, 3] of lanes over an axis from 0 to duration_s."""
    height = sum(GAP + len(lane) for lane in lanes) + AXIS_HEIGHT
    picture = np.empty((height, LANE_WIDTH + 2 * MARGIN, 3), dtype=np.float32)
    picture[:] = BACKGROUND
    top = 0
    for lane in lanes:
        top += GAP
        picture[top : top + len(lane), MARGIN:-MARGIN] = lane
        top += len(lane)
    return torch.from_numpy(_with_axis(picture, top, duration_s))[None]


def wave_lane(
    waveform: torch.Tensor, rate: float, mask: torch.Tensor, duration_s: float, height: int = WAVE_HEIGHT
) -> np.ndarray:
    """Return a lane with a waveform [channels, S] and over it a mask [T] of duration_s.

    The loudest sample fills the lane. What the waveform lacks of duration_s is silence.
    """
    lowest, highest, loudness = _envelope(waveform.float().cpu().numpy(), rate, duration_s)
    scale = FULL * height / 2 / max(highest.max(), -lowest.min(), 1e-6)
    middle, hair = height / 2, 0.75  # half the width of the line that silence is
    body = _between(height, middle - scale * highest - hair, middle - scale * lowest + hair)
    core = _between(height, middle - scale * loudness, middle + scale * loudness)
    lit = _columns(mask.float().cpu().numpy())

    lane = _mix(LANE, LIT_LANE, lit[None, :])
    colour = _mix(KEPT, LIT, lit[None, :])
    lane = lane + body[..., None] * (colour - lane)
    lane = lane + LOUD * (core * body)[..., None] * (1 - lane)
    return lane + _level_line(height, lit)[..., None] * (EDGE - lane)


def _envelope(waveform: np.ndarray, rate: float, duration_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lowest and highest sample and loudness (root mean square) of each column of a lane, 0 past the end."""
    starts = (np.arange(LANE_WIDTH) * (duration_s * rate / LANE_WIDTH)).astype(np.int64)
    waveform = waveform[:, : max(1, round(duration_s * rate))]
    starts = starts[starts < waveform.shape[1]]
    silence = LANE_WIDTH - len(starts)

    def column(reduce: np.ufunc, samples: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.pad(reduce.reduceat(samples, starts), (0, silence))

    step = max(1, waveform.shape[1] // (LANE_WIDTH * LOUDNESS_SAMPLES))
    counts = np.diff(starts // step, append=-(-waveform.shape[1] // step)).clip(1)
    powers = [column(np.add, np.square(channel[::step]), starts // step) for channel in waveform]
    lowest = np.min([column(np.minimum, channel, starts) for channel in waveform], axis=0)
    highest = np.max([column(np.maximum, channel, starts) for channel in waveform], axis=0)
    return lowest, highest, np.sqrt(np.mean(powers, axis=0) / np.pad(counts, (0, silence), constant_values=1))


def _columns(values: np.ndarray) -> np.ndarray:
    """Return values [n] spread over the columns of a lane; where several fall on one the largest is seen."""
    return np.maximum.reduceat(values, np.arange(LANE_WIDTH) * len(values) // LANE_WIDTH)


def _between(height: int, tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    """Return how much of each pixel [height, columns] lies between top and bottom of its column, 0 to 1."""
    rows = np.arange(height)[:, None]
    return (np.minimum(rows + 1, bottoms) - np.maximum(rows, tops)).clip(0, 1)


def _level_line(height: int, level: np.ndarray) -> np.ndarray:
    """Return a line that follows a level from 0, below the lane, to 1, at its top; it shows ramps as ramps."""
    half = LINE_WIDTH / 2
    y = half + (1 - level) * (height + LINE_WIDTH)
    beside = np.stack((np.roll(y, 1), y, np.roll(y, -1)))
    beside[0, 0], beside[2, -1] = y[0], y[-1]
    return _between(height, beside.min(0) - half, beside.max(0) + half)


def _mix(a: np.ndarray, b: np.ndarray, part: np.ndarray) -> np.ndarray:
    return a + part[..., None] * (b - a)


def _with_axis(picture: np.ndarray, top: int, duration_s: float) -> np.ndarray:
    """Return a picture with ticks and seconds from row `top` on."""
    step = next((s for s in TICK_STEPS_S if s / duration_s * LANE_WIDTH >= LABEL_SPACE), TICK_STEPS_S[-1])
    ticks = np.arange(0, duration_s * (1 + 1e-9), step)
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_SIZE)
    for tick in ticks:
        x = MARGIN + tick / duration_s * (LANE_WIDTH - 1)
        pen.line((x, top, x, top + 6), fill=LABEL, width=2)
        label = f"{tick:g} s" if tick == 0 else f"{tick:g}"
        width = pen.textlength(label, font)
        x = min(max(x - width / 2, 2), picture.shape[1] - width - 2)
        pen.text((x, top + 8), label, fill=LABEL, font=font)
    return np.asarray(image, dtype=np.float32) / 255
