# SPDX-License-Identifier: Apache-2.0
"""Frames from a video file, an animation or a folder of pictures."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import SupportsIndex

from ardiff_engine import arguments
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media.animation import open_animation
from ardiff_engine.media.crop import Sides, cropped_pixels
from ardiff_engine.media.film import open_film
from ardiff_engine.media.film_file import film_kind
from ardiff_engine.media.picture import picture_kind
from ardiff_engine.media.picture_folder import open_folder
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.rate import rate_of
from ardiff_engine.media.source import head_of, mode_of, opened, undecodable
from ardiff_engine.media.video import Clip, Video


def open_video(path: str | os.PathLike[str], fps: float | None = None) -> Video:
    """What is known of a video without reading it; `read` and `play` give its frames, from any of them on.

    What the file holds decides how it is read, never its name: mp4, mov, mkv, webm and avi (PyAV), webp and
    gif animations, png and jpeg pictures (Pillow). A folder gives its .png, .jpg and .webp files in the order
    of the numbers in their names.

    Frames are upright (display matrix, EXIF) and have square pixels. They are taken by time, at `fps` frames
    per second or, left out, at the rate of the file: the usual distance of its frames, for animations the
    time of the shortest picture. Gaps become repeated frames. Folders and still pictures have no times.
    Pictures whose size changes within a film are brought to the first one's size if they keep their shape.

    Raises:
        MediaError: nothing there, no regular file, not a video, damaged or cut off, PyAV missing, or more
            than a file of that size may ask for (media/limits.py).
    """
    source = arguments.path("path", path)
    rate = None if fps is None else rate_of(fps)
    if stat.S_ISDIR(mode_of(source)):
        return open_folder(source)
    with opened(source) as file:
        head = head_of(source, file)
        if picture_kind(head):
            return open_animation(source, file, rate)
        kind = film_kind(head)
        if kind is None:
            raise undecodable(source, "no kind of video that is known here")
        return open_film(source, file, kind, rate)


def read_video(path: str | os.PathLike[str], max_frames: int | None = None) -> Pixels:
    """The frames of a video, uint8 [T, H, W, 3] RGB; all of them, or the first `max_frames`.

    See `open_video` for what is read and how. Windows of long videos: `open_video(path).read(first, count)`.

    Raises:
        MediaError: as `open_video`; pictures of different sizes; all frames would take more than 512 MiB and
            four times the file.
    """
    return read_clip(path, max_frames).frames


def read_clip(
    path: str | os.PathLike[str], max_frames: int | None = None, *, size: Sides | None = None
) -> Clip:
    """`read_video` with the frame rate: a continuation is written at the rate of what it continues.

    size: frames become squares of this side, or pictures of this height and width, while they are decoded
        (resized to cover them, centre crop), so that memory does not depend on the size of the pictures.
    """
    if max_frames is not None and (
        isinstance(max_frames, bool) or not isinstance(max_frames, SupportsIndex) or int(max_frames) < 1
    ):
        raise MediaError(
            explain(
                "max_frames out of range",
                got=repr(max_frames),
                expected="a whole number >= 1",
                fix="Leave it out to read all.",
            )
        )
    video = open_video(path)
    each = None if size is None else partial(cropped_pixels, size=size)
    return Clip(video.read(0, max_frames, each=each), video.fps)
