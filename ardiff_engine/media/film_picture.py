# SPDX-License-Identifier: Apache-2.0
"""A decoded frame of a film as a player shows it: in square pixels, upright, in RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.source import decoding, undecodable
from ardiff_engine.media.upright import orientation_of, upright

# A picture size that changes within a film is followed if the picture keeps its shape.
SAME_SHAPE = 0.02


def square_size(path: Path, frame: Any, stream: Any) -> tuple[int, int]:
    """(width, height) of a stored frame in square pixels, before it is turned; the height is kept."""
    with decoding(path):
        aspect = stream.sample_aspect_ratio or 1
        return max(round(frame.width * aspect), 1), frame.height


def stated_orientation(path: Path, frame: Any) -> int:
    """How a frame is to be turned, as EXIF's orientation. Raises MediaError for an odd angle.

    Ask one frame of a film only: PyAV's side data and the frame hold each other until the collector comes.
    """
    with decoding(path):
        matrix = frame.side_data.get("DISPLAYMATRIX")
        orientation = 1 if matrix is None else orientation_of(bytes(matrix))
    if orientation is None:
        raise undecodable(path, "the picture is to be turned by something else than a quarter")
    return orientation


def shown_pixels(path: Path, frame: Any, stream: Any, size: tuple[int, int], orientation: int) -> Pixels:
    """uint8 [H, W, 3] of a frame, brought to `size` (width, height in square pixels) and then turned.

    Raises:
        MediaError: a picture of another shape than `size`, or one that the decoder had to make up in part.
    """
    if frame.is_corrupt:
        raise undecodable(path, "a damaged picture")
    width, height = square_size(path, frame, stream)
    if abs(width * size[1] - height * size[0]) > SAME_SHAPE * height * size[0]:
        raise undecodable(path, f"the picture changes from {size[0]} x {size[1]} to {width} x {height}")
    with decoding(path):
        pixels: Pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return upright(pixels, orientation)
