"""A picture of how a take sings its lyrics: for every line, how strongly the model attends to its words over time.

One row per line, in order, with tags as headings between them. Warm colours show the energy of the line's tokens, a
frame shows when the alignment says it is sung, and the number at the right is its confidence. The time axis is drawn
by `lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...acestep_core.scoring.lyrics import TextSpan, TimedLine
from ...acestep_core.scoring.score import WEAK
from ..host.lyric_scorer import SungTake
from .lanes import BACKGROUND, EDGE, LABEL, LANE, LANE_WIDTH, LIT, draw

# Rows share this height in pixels, each within these bounds.
ALL_ROWS = 1_000
LEAST_ROW, MOST_ROW = 26, 52
HEADING = 26
ROW_GAP = 2
TEXT_MARGIN = 8
ELLIPSIS = "…"

# Energies and their colours, with the ones between interpolated: lane, ember, dark red, orange, nearly white.
LEVELS = (0.0, 0.2, 0.45, 0.75, 1.0)
COLOURS = np.stack((LANE, (0.185, 0.145, 0.185), (0.600, 0.235, 0.220), LIT, EDGE + (1 - EDGE) / 2))
SURE = (124, 202, 178)
UNSURE = (246, 92, 106)
WORDS = (232, 236, 244)
OUTLINE = tuple((255 * BACKGROUND).astype(int).tolist())

# System fonts with more scripts than PIL's own, tried in this order.
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
NO_CHARACTER = "\U0010ffff"  # no font has it, so it is drawn as the font's sign for a missing character


def lyrics_picture(take: SungTake) -> torch.Tensor:
    """Return a picture [1, H, W, 3] of every line of a take over time."""
    n_lines = sum(not line.is_tag for line in take.lines)
    height = min(max(ALL_ROWS // max(n_lines, 1), LEAST_ROW), MOST_ROW)
    rows = [
        _heading(line) if line.is_tag else _row(take, line, span, height)
        for line, span in zip(take.lines, take.lyrics.lines, strict=True)
    ]
    return draw([np.concatenate(_spaced(rows))], take.duration_s)


def _spaced(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    gap = np.broadcast_to(BACKGROUND, (ROW_GAP, LANE_WIDTH, 3))
    return [part for row in rows for part in (row, gap)][:-1]


def _heading(line: TimedLine) -> np.ndarray:
    """Return the row of a tag: its words, and a thin line to the right end."""
    image = Image.new("RGB", (LANE_WIDTH, HEADING), OUTLINE)
    pen = ImageDraw.Draw(image)
    text, font = _fitting(line.section, HEADING - 9, LANE_WIDTH // 2)
    pen.text((TEXT_MARGIN, HEADING / 2), text, fill=LABEL, font=font, anchor="lm")
    x = 2 * TEXT_MARGIN + pen.textlength(text, font)
    pen.line((x, HEADING // 2, LANE_WIDTH, HEADING // 2), fill=tuple(channel // 3 for channel in LABEL))
    return np.asarray(image, dtype=np.float32) / 255


def _row(take: SungTake, line: TimedLine, span: TextSpan, height: int) -> np.ndarray:
    """Return the row of a line that is sung."""
    colours = np.broadcast_to(_colours(_columns(take, span)), (height, LANE_WIDTH, 3))
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    accent = UNSURE if line.confidence < WEAK else SURE
    left, right = (_x(take, time_s) for time_s in (line.start_s, line.end_s))
    if left < LANE_WIDTH and right > 0:  # a task's window may reach past either end of the take
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
    """Return where text begins: at the left end, or after the frame if it would cover that and still fits there."""
    covers = left < TEXT_MARGIN + width + TEXT_MARGIN
    behind = right + TEXT_MARGIN
    return behind if covers and behind + width <= TEXT_MARGIN + room else TEXT_MARGIN


def _columns(take: SungTake, span: TextSpan) -> np.ndarray:
    """Return the largest energy of a line's tokens in every column of a lane, 0 outside the scored window."""
    loudest = take.energy[span.tokens.start : span.tokens.stop].amax(0).float().numpy()
    begin = min(round(_x(take, take.start_s)), LANE_WIDTH - 1)
    end = min(max(round(_x(take, take.start_s + take.window_s)), begin + 1), LANE_WIDTH)
    shown_s = (end - begin) / LANE_WIDTH * take.duration_s  # a task's window may reach past the end of the take
    frames = loudest[: max(1, round(len(loudest) * min(1.0, shown_s / take.window_s)))]
    starts = np.arange(end - begin) * len(frames) // (end - begin)
    columns = np.zeros(LANE_WIDTH, dtype=np.float32)
    columns[begin:end] = np.maximum.reduceat(frames, starts)
    return columns


def _colours(values: np.ndarray) -> np.ndarray:
    """Return colours [n, 3] of values from 0 to 1."""
    return np.stack([np.interp(values, LEVELS, channel) for channel in COLOURS.T], axis=-1)


def _x(take: SungTake, time_s: float) -> float:
    return time_s / take.duration_s * LANE_WIDTH


def _fitting(text: str, size: int, room: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return text, shortened to fit the room in pixels, and a font that can write it, if any can."""
    font = _font_for(text, size)
    if font.getlength(text) <= room:
        return text, font
    n_fitting = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(text[:n] + ELLIPSIS) <= room), 0)
    return text[:n_fitting].rstrip() + ELLIPSIS, font


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return PIL's own font if it can write the text, else a system font that can, else PIL's, which draws boxes."""
    if _can_write(_font(size), text):
        return _font(size)
    others = (font for name in OTHER_FONTS if (font := _font(size, name)) is not None)
    return next((font for font in others if _can_write(font, text)), _font(size))


@cache
def _font(size: int, name: str = "") -> ImageFont.FreeTypeFont | None:
    """Return a system font by file name, or None if it is not installed; the empty name is PIL's own font."""
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _can_write(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Tell whether a font has all characters of a text."""
    missing = bytes(font.getmask(NO_CHARACTER))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in set(text))
