# SPDX-License-Identifier: Apache-2.0
"""Pictures in a terminal: a half block is two pixels, the upper one its text and the lower one its ground."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HOME, CLEAR, HIDE, SHOW, RESET = "\x1b[H", "\x1b[2J", "\x1b[?25l", "\x1b[?25h", "\x1b[0m"
_ERASE = "\x1b[K"


def drawn(image: NDArray[np.uint8], columns: int, rows: int, line: str) -> str:
    """What to write for a picture uint8 [H, W, 3], as large as fits into columns x rows characters in whole
    multiples, or else its upper left part; below it a line of text."""
    height, width = image.shape[:2]
    scale = max(1, min(columns // width, 2 * (rows - 2) // height))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)[: max(2, 2 * (rows - 2)), :columns]
    if len(large) % 2:
        large = np.concatenate([large, np.zeros_like(large[:1])])
    lines = [_line(upper, lower) for upper, lower in zip(large[::2], large[1::2], strict=True)]
    return HOME + "".join(f"{own}{RESET}{_ERASE}\r\n" for own in lines) + line[: columns - 1] + _ERASE


def _line(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> str:
    """Colours are named where they change."""
    parts, before = [], None
    for top, ground in zip(upper.tolist(), lower.tolist(), strict=True):
        if (top, ground) != before:
            parts.append("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m".format(*top, *ground))
            before = top, ground
        parts.append("▀")
    return "".join(parts)
