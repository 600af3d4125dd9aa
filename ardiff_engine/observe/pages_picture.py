# SPDX-License-Identifier: Apache-2.0
"""The picture of page occupancy: time across, pages up, one colour per stream.

Streams are stacked by number. The dark line is what the pool has given out, the orange one its size. Grey
below the dark line is held by streams that the pass does not list. Streams that share pages count them once
each, so there the stack may rise above the dark line.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ardiff_engine import arguments
from ardiff_engine.errors import ConfigError, MediaError, explain
from ardiff_engine.media.staging import staged
from ardiff_engine.observe.records import PassRecord
from ardiff_engine.plan.picture import FAINT, INK, PAPER, Colour

# Okabe and Ito's colours for all kinds of sight, lighter, without black and without the line's orange.
STREAMS: tuple[Colour, ...] = (
    (86, 180, 233),
    (94, 190, 150),
    (240, 228, 66),
    (112, 146, 210),
    (204, 121, 167),
    (176, 206, 120),
    (160, 140, 220),
    (230, 190, 150),
)
OTHERS: Colour = (214, 214, 220)
POOL: Colour = (213, 94, 0)

AREA = (1000, 420)
LEFT = 92
ABOVE = 104
BELOW = 58
LEGEND_WIDTH = 250
NAMED = 14


def draw(records: Sequence[PassRecord], path: str | PathLike[str], *, dropped: int = 0) -> None:
    """Write the picture of these passes; `dropped` older ones are mentioned.

    ConfigError: no passes. MediaError: a name that does not end in .png, a disk that refuses.
    """
    target = _checked(path)
    if not records:
        raise ConfigError(
            explain("nothing to draw", got="0 passes", expected="1 or more", fix="Record some passes first.")
        )
    width, height = AREA
    size = (LEFT + width + 30 + LEGEND_WIDTH, ABOVE + height + BELOW)
    page = Image.new("RGB", size, PAPER)
    top = _top(records)
    page.paste(Image.fromarray(paint(records, top)), (LEFT, ABOVE))
    pen = ImageDraw.Draw(page)
    peak = max(record.pages_held for record in records)
    older = f" (the last of {len(records) + dropped})" if dropped else ""
    pen.text((24, 18), "pages held", INK, _font(22))
    pen.text(
        (24, 48),
        f"{len(records)} passes{older}, {len(_pages_by_stream(records))} streams, "
        f"at most {peak} of {records[-1].pages_total} pages",
        FAINT,
        _font(15),
    )
    _axes(pen, top, records[-1].ended - records[0].began)
    _legend(pen, records)
    with staged(target) as temporary:
        page.save(temporary, format="PNG")


def paint(records: Sequence[PassRecord], top: int) -> npt.NDArray[np.uint8]:
    """The area alone, uint8 [height, width, 3]; `top` pages fill it. A column shows the fullest pass that
    began in it, or the last one before.
    """
    width, height = AREA
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[:] = PAPER
    shown = [records[place] for place in _passes_shown(records)]
    for column, record in enumerate(shown):
        pixels[_row(record.pages_held, top) :, column] = OTHERS
        stacked = 0
        for stream in sorted(record.streams, key=lambda stream: stream.stream):
            above = stacked + stream.pages
            pixels[_row(above, top) : _row(stacked, top), column] = colour(stream.stream)
            stacked = above
    # The lines last, each joined to where it was one column before.
    for pages, ink in (([r.pages_total for r in shown], POOL), ([r.pages_held for r in shown], INK)):
        levels = [min(_row(count, top), height - 2) for count in pages]
        for column, level in enumerate(levels):
            before = levels[max(column - 1, 0)]
            pixels[min(level, before) : max(level, before) + 2, column] = ink
    return pixels


def colour(stream: int) -> Colour:
    return STREAMS[stream % len(STREAMS)]


def _passes_shown(records: Sequence[PassRecord]) -> npt.NDArray[np.int64]:
    """For every column the pass that it shows."""
    width = AREA[0]
    began = np.array([record.began for record in records])
    began -= began[0]
    span = max(records[-1].ended - records[0].began, 1e-9)
    columns = np.minimum((began / span * width).astype(np.int64), width - 1)
    # Of the passes that began in a column, the fullest is written last and stays.
    order = np.argsort([record.pages_held for record in records], kind="stable")
    shown = np.full(width, -1, dtype=np.int64)
    shown[columns[order]] = order
    last = np.searchsorted(columns, np.arange(width), side="right") - 1
    return np.where(shown >= 0, shown, last)


def _row(pages: int, top: int) -> int:
    return AREA[1] - round(pages / top * AREA[1])


def _top(records: Sequence[PassRecord]) -> int:
    stacked = max(sum(stream.pages for stream in record.streams) for record in records)
    return max(math.ceil(1.05 * max(stacked, *(r.pages_total for r in records), 1)), 2)


def _pages_by_stream(records: Sequence[PassRecord]) -> dict[int, tuple[int, str]]:
    """Pages summed over the passes, and label of every stream, by number."""
    sums: defaultdict[int, int] = defaultdict(int)
    labels: dict[int, str] = {}
    for record in records:
        for stream in record.streams:
            sums[stream.stream] += stream.pages
            labels[stream.stream] = stream.label
    return {stream: (sums[stream], labels[stream]) for stream in sorted(sums)}


def _axes(pen: ImageDraw.ImageDraw, top: int, seconds: float) -> None:
    width, height = AREA
    pen.rectangle([LEFT - 1, ABOVE - 1, LEFT + width, ABOVE + height], outline=FAINT)
    pen.text((LEFT - 10, ABOVE - 8), "pages", INK, _font(15), anchor="rs")
    for step in range(0, top + 1, max(round(_step(top, height / 34)), 1)):
        y = ABOVE + _row(step, top)
        pen.line([(LEFT - 6, y), (LEFT - 2, y)], FAINT)
        pen.text((LEFT - 9, y), str(step), FAINT, _font(12), anchor="rm")
    step_seconds = _step(seconds, width / 90)
    for index in range(int(seconds / step_seconds) + 1):
        x = LEFT + index * step_seconds / max(seconds, 1e-9) * width
        pen.line([(x, ABOVE + height + 1), (x, ABOVE + height + 5)], FAINT)
        pen.text((x, ABOVE + height + 8), f"{index * step_seconds:.6g}", FAINT, _font(12), anchor="ma")
    pen.text((LEFT + width, ABOVE + height + 28), "seconds", INK, _font(15), anchor="ra")


def _legend(pen: ImageDraw.ImageDraw, records: Sequence[PassRecord]) -> None:
    x, y = LEFT + AREA[0] + 30, ABOVE
    for name, ink in (("all held", INK), ("size of the pool", POOL)):
        pen.line([(x, y + 8), (x + 25, y + 8)], ink, width=3)
        pen.text((x + 35, y + 8), name, INK, _font(14), anchor="lm")
        y += 26
    pen.rectangle([x, y, x + 25, y + 15], fill=OTHERS)
    pen.text((x + 35, y + 8), "held by others", INK, _font(14), anchor="lm")
    y += 26
    streams = _pages_by_stream(records)
    largest = sorted(streams, key=lambda stream: (-streams[stream][0], stream))[:NAMED]
    for stream in sorted(largest):
        pen.rectangle([x, y, x + 25, y + 15], fill=colour(stream))
        name = f"stream {stream} {streams[stream][1]}".rstrip()
        pen.text((x + 35, y + 8), _shortened(name, LEGEND_WIDTH - 45), INK, _font(14), anchor="lm")
        y += 26
    if len(streams) > len(largest):
        pen.text((x, y + 8), f"and {len(streams) - len(largest)} more", FAINT, _font(14), anchor="lm")


def _shortened(text: str, room: int) -> str:
    # One line, whatever the label holds; cut before measuring, which takes time for long texts.
    text = " ".join(text.split())[:80]
    if _font(14).getlength(text) <= room:
        return text
    while text and _font(14).getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _step(span: float, most: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (and their tenths) that divides `span` into at most `most` parts."""
    least = max(span, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(base * power for base in (1, 2, 5, 10) if base * power >= least * (1 - 1e-9))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _checked(path: str | PathLike[str]) -> Path:
    target = arguments.path("path", path)
    if target.suffix.lower() != ".png" or target.is_dir():
        raise MediaError(
            explain(
                "picture of pages",
                got=repr(str(path)),
                expected="the name of a file that ends in .png",
                fix="Change the name.",
            )
        )
    return target
