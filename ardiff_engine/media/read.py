# SPDX-License-Identifier: Apache-2.0
"""`read_video`: frames from a video file, an animation or a folder of pictures."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media.frames import Pixels
from ardiff_engine.media.mp4 import decode_mp4, undecodable
from ardiff_engine.media.timing import promised_frames, repeats

ANIMATIONS = (".webp", ".gif", ".png", ".apng")
# What Pillow raises for files that are damaged, truncated or made to exhaust the memory.
DAMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def read_video(path: str | os.PathLike[str], max_frames: int | None = None) -> Pixels:
    """The frames of a video, uint8 [T, H, W, 3] RGB; all of them, or the first `max_frames`.

    A folder gives its .png files in the order of the numbers in their names. A webp or gif picture that is
    shown n times as long as the shortest one counts as n frames, because writers merge equal neighbours. Any
    other file is given to FFmpeg (PyAV): mp4, mov, mkv, webm, avi, ...

    Raises:
        MediaError: nothing there, not a video, damaged or truncated, pictures of different sizes, PyAV
            missing.
    """
    source = Path(path)
    if max_frames is not None and max_frames < 1:
        raise MediaError(
            explain(
                "max_frames out of range", got=max_frames, expected=">= 1", fix="Leave it out to read all."
            )
        )
    if not source.exists():
        raise MediaError(
            explain(
                f"there is no video at {source}",
                got="nothing",
                expected="a video file or a folder of .png",
                fix="Check the path.",
            )
        )
    if source.is_dir():
        return _read_folder(source, max_frames)
    if source.suffix.lower() in ANIMATIONS:
        return _read_animation(source, max_frames)
    return decode_mp4(source, max_frames)


def _read_animation(path: Path, max_frames: int | None) -> Pixels:
    pictures: list[Pixels] = []
    durations: list[float] = []
    try:
        with Image.open(path) as image:
            note = _note(image)
            for frame in ImageSequence.Iterator(image):
                pictures.append(np.asarray(frame.convert("RGB")))
                durations.append(float(frame.info.get("duration", 0)))
                if len(pictures) == max_frames:
                    break
    except DAMAGE as error:
        raise undecodable(path, f"{error} after {len(pictures)} frames") from error
    frames: list[Pixels] = []
    for picture, count in zip(pictures, repeats(durations, note), strict=True):
        frames += [picture] * count
    promised = promised_frames(note)
    if promised is not None and len(frames) < min(promised, max_frames or promised):
        # Pillow ends a gif that was cut between two blocks as if it were complete.
        raise undecodable(path, f"{len(frames)} of {promised} frames")
    return np.stack(frames[:max_frames])


def _note(image: Image.Image) -> bytes:
    note = image.info.get("comment") or image.info.get("xmp") or b""
    return note if isinstance(note, bytes) else str(note).encode()


def _read_folder(folder: Path, max_frames: int | None) -> Pixels:
    visible = [file for file in folder.glob("*.png") if not file.name.startswith(".")]
    files = sorted(visible, key=_natural)[:max_frames]
    if not files:
        raise undecodable(folder, "a folder without .png files")
    frames: list[Pixels] = []
    for file in files:
        try:
            with Image.open(file) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except DAMAGE as error:
            raise undecodable(file, str(error)) from error
        if frames[-1].shape != frames[0].shape:
            raise undecodable(
                file, f"size {frames[-1].shape[:2]} where the first picture has {frames[0].shape[:2]}"
            )
    return np.stack(frames)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    # frame_2 before frame_10: runs of digits compare as numbers.
    parts = re.findall(r"\d+|\D+", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
