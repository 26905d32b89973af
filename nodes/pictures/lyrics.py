"""The picture of a take that is heard singing: for every line, how strongly its words are heard over time.

A row a line, from the first to the last, tags as headings between. Warm colours are the energy of the line's
tokens, the frame is when it is sung by the alignment, at the right stands how surely. Lanes and their axis are
`picture`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...acestep_core.scoring.lyrics import Lyrics, Stretch, TimedLine
from ...acestep_core.scoring.score import WEAK
from .lanes import BACKGROUND, EDGE, LABEL, LANE, LANE_WIDTH, LIT, draw

# Rows share this height, as far as they stay within these bounds.
ALL_ROWS = 1_000
LEAST_ROW, MOST_ROW = 26, 52
HEADING = 26
ROW_GAP = 2
TEXT_MARGIN = 8
ELLIPSIS = "…"

# The energies that colours stand for, and the colours: from the lane over ember and orange to nearly white.
LEVELS = (0.0, 0.2, 0.45, 0.75, 1.0)
COLOURS = np.stack((LANE, (0.185, 0.145, 0.185), (0.600, 0.235, 0.220), LIT, EDGE + (1 - EDGE) / 2))
SURE = (124, 202, 178)
UNSURE = (246, 92, 106)
WORDS = (232, 236, 244)
OUTLINE = tuple((255 * BACKGROUND).astype(int).tolist())

# Fonts that know more scripts than PIL's own, on the systems that have them.
OTHER_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "msyh.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)
NO_CHARACTER = "\U0010ffff"  # drawn as whatever a font draws for what it lacks


@dataclass(frozen=True, eq=False)
class Heat:
    """What is drawn: energy [N, F] of the tokens of lyrics, heard from start_s on for heard_s of a take of duration_s.

    lines: those of the lyrics, timed, in the same order.
    """

    lyrics: Lyrics
    lines: tuple[TimedLine, ...]
    energy: torch.Tensor
    start_s: float
    heard_s: float
    duration_s: float


def heat_picture(heat: Heat) -> torch.Tensor:
    """Return a picture [1, H, W, 3] of what is heard of each line over the time of a take."""
    n_lines = sum(not line.is_tag for line in heat.lines)
    height = min(max(ALL_ROWS // max(n_lines, 1), LEAST_ROW), MOST_ROW)
    rows = [
        _heading(line) if line.is_tag else _row(heat, line, stretch, height)
        for line, stretch in zip(heat.lines, heat.lyrics.lines, strict=True)
    ]
    return draw([np.concatenate(_spaced(rows))], heat.duration_s)


def _spaced(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    gap = np.broadcast_to(BACKGROUND, (ROW_GAP, LANE_WIDTH, 3))
    return [part for row in rows for part in (row, gap)][:-1]


def _heading(line: TimedLine) -> np.ndarray:
    """Return the row of a tag: its words, and a hair line to the right end."""
    image = Image.new("RGB", (LANE_WIDTH, HEADING), OUTLINE)
    pen = ImageDraw.Draw(image)
    text, font = _fitting(line.section, HEADING - 9, LANE_WIDTH // 2)
    pen.text((TEXT_MARGIN, HEADING / 2), text, fill=LABEL, font=font, anchor="lm")
    x = 2 * TEXT_MARGIN + pen.textlength(text, font)
    pen.line((x, HEADING // 2, LANE_WIDTH, HEADING // 2), fill=tuple(channel // 3 for channel in LABEL))
    return np.asarray(image, dtype=np.float32) / 255


def _row(heat: Heat, line: TimedLine, stretch: Stretch, height: int) -> np.ndarray:
    """Return the row of a line that is sung."""
    colours = np.broadcast_to(_heat_colours(_columns(heat, stretch)), (height, LANE_WIDTH, 3))
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    accent = UNSURE if line.confidence < WEAK else SURE
    left, right = (_x(heat, time_s) for time_s in (line.start_s, line.end_s))
    if left < LANE_WIDTH and right > 0:  # a task may hear more than the take lasts
        pen.rectangle((left, 1, max(right, left + 3), height - 2), outline=accent, width=2)

    size = min(height - 8, 24)
    number = f"{line.confidence:.2f}"
    font = _font(size)
    stroke = {"stroke_width": 2, "stroke_fill": OUTLINE}
    pen.text((LANE_WIDTH - TEXT_MARGIN, height / 2), number, fill=accent, font=font, anchor="rm", **stroke)
    room = LANE_WIDTH - 4 * TEXT_MARGIN - pen.textlength(number, font)
    text, font = _fitting(line.text, size, room)
    x = _beside(left, right, pen.textlength(text, font), room)
    pen.text((x, height / 2), text, fill=WORDS, font=font, anchor="lm", **stroke)
    return np.asarray(image, dtype=np.float32) / 255


def _beside(left: float, right: float, width: float, room: float) -> float:
    """Return where text begins: at the left end, or behind a span that it would cover there, if it fits."""
    covers = left < TEXT_MARGIN + width + TEXT_MARGIN
    behind = right + TEXT_MARGIN
    return behind if covers and behind + width <= TEXT_MARGIN + room else TEXT_MARGIN


def _columns(heat: Heat, stretch: Stretch) -> np.ndarray:
    """Return the largest energy of a line's tokens in every column of a lane, 0 where nobody listened."""
    loudest = heat.energy[stretch.tokens.start : stretch.tokens.stop].amax(0).float().numpy()
    begin = min(round(_x(heat, heat.start_s)), LANE_WIDTH - 1)
    end = min(max(round(_x(heat, heat.start_s + heat.heard_s)), begin + 1), LANE_WIDTH)
    heard_s = (end - begin) / LANE_WIDTH * heat.duration_s
    frames = loudest[: max(1, round(len(loudest) * min(1.0, heard_s / heat.heard_s)))]
    starts = np.arange(end - begin) * len(frames) // (end - begin)
    columns = np.zeros(LANE_WIDTH, dtype=np.float32)
    columns[begin:end] = np.maximum.reduceat(frames, starts)
    return columns


def _heat_colours(values: np.ndarray) -> np.ndarray:
    """Return colours [n, 3] of values from 0 to 1."""
    return np.stack([np.interp(values, LEVELS, channel) for channel in COLOURS.T], axis=-1)


def _x(heat: Heat, time_s: float) -> float:
    return time_s / heat.duration_s * LANE_WIDTH


def _fitting(text: str, size: int, room: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return text that takes no more room, its end left out if need be, and a font that can write it, if any can."""
    font = _font_for(text, size)
    if font.getlength(text) <= room:
        return text, font
    n_fitting = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + ELLIPSIS) <= room), 0)
    return text[:n_fitting].rstrip() + ELLIPSIS, font


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return PIL's own font, or for other scripts one of the system's; with none of those, boxes are drawn."""
    if _can_write(_font(size), text):
        return _font(size)
    others = (font for name in OTHER_FONTS if (font := _font(size, name)) is not None)
    return next((font for font in others if _can_write(font, text)), _font(size))


@cache
def _font(size: int, name: str = "") -> ImageFont.FreeTypeFont | None:
    """Return a font of the system by its file's name, None where it has none such; PIL's own has no name."""
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Tell whether a font has all characters of a text."""
    lacking = bytes(font.getmask(NO_CHARACTER))
    return all(character.isspace() or bytes(font.getmask(character)) != lacking for character in set(text))
