# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: several videos as rows of pictures on one page, to be looked at side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ardiff_engine import arguments
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.media.staging import staged

PAPER = (255, 255, 255)
INK = (40, 40, 40)
GAP = 2
MARGIN = 8
FONT_SIZE = 13
# Pictures whose longer side has fewer pixels are enlarged: 32 are hard to see on a page.
LEGIBLE = 64


def contact_sheet(
    rows: Sequence[object],
    labels: Sequence[str],
    path: str | os.PathLike[str],
    *,
    columns: int = 16,
    title: str | None = None,
) -> Path:
    """Writes one picture with a labelled row per video and returns its path.

    Args:
        rows: videos [T, H, W, 3] as `export_video` takes them; lengths and sizes may differ.
        labels: one line of text per row.
        path: a name that ends in .png, .webp or .jpg.
        columns: pictures per row; a longer video is shown at evenly spaced frames, first and last included.
            The frame's
            index stands above each picture.
        title: a line above the first row.

    Raises:
        MediaError: no rows, labels that do not match, frames that are no video, an unknown suffix, a full
            disk.
    """
    target = arguments.path("path", path)
    if not rows or len(rows) != len(labels) or columns < 1:
        raise MediaError(
            explain(
                "a contact sheet needs rows and one label for each",
                got=f"{len(rows)} rows, {len(labels)} labels, {columns} columns",
                expected="at least one row, as many labels, at least one column",
                fix="Pass rows=[video, ...], labels=[text, ...].",
            )
        )
    if target.suffix.lower() not in (".png", ".webp", ".jpg"):
        raise MediaError(
            explain(
                "unknown kind of picture",
                got=repr(target.name),
                expected=".png, .webp or .jpg",
                fix="Change the name's ending.",
            )
        )
    strips = [_Strip(as_frames(row), columns) for row in rows]
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 5
    width = 2 * MARGIN + max(
        max(strip.width for strip in strips),
        max(round(font.getlength(text)) for text in [*labels, title or ""]),
    )
    height = 2 * MARGIN + (line if title else 0) + sum(2 * line + strip.height + MARGIN for strip in strips)
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    y = MARGIN
    if title:
        draw.text((MARGIN, y), title, INK, font)
        y += line
    for strip, label in zip(strips, labels, strict=True):
        draw.text((MARGIN, y), label, INK, font)
        y += line
        for column, (index, picture) in enumerate(strip.pictures):
            x = MARGIN + column * (picture.width + GAP)
            draw.text((x + picture.width / 2, y), str(index), INK, font, anchor="ma")
            page.paste(picture, (x, y + line))
        y += line + strip.height + MARGIN
    with staged(target) as temporary:
        page.save(temporary, {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG"}[target.suffix.lower()])
    return target


class _Strip:
    """The pictures of one row, enlarged until they can be seen, with the indices of their frames."""

    def __init__(self, frames: np.ndarray, columns: int) -> None:
        count = min(columns, len(frames))
        indices = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
        scale = max(1, LEGIBLE // max(frames.shape[1:3]))
        chosen = enlarge(frames[indices], scale)
        self.pictures = [
            (int(i), Image.fromarray(picture)) for i, picture in zip(indices, chosen, strict=True)
        ]
        self.height = chosen.shape[1]
        self.width = len(self.pictures) * (chosen.shape[2] + GAP) - GAP
