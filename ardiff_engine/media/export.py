# SPDX-License-Identifier: Apache-2.0
"""`export_video`: frames to a file, in the format that its name asks for."""

from __future__ import annotations

import os
import re
from pathlib import Path

from PIL import Image

from ardiff_engine import arguments
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.files import TEMPORARY_PREFIX
from ardiff_engine.media.encoding import encoding
from ardiff_engine.media.frames import as_frames, check_scale, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder, pyav
from ardiff_engine.media.pixels import Pixels
from ardiff_engine.media.rate import rate_of
from ardiff_engine.media.staging import check_parents, is_folder, staged, unwritable
from ardiff_engine.media.timing import timing_note

SUFFIXES = (".mp4", ".webp", ".gif")
GIF_MAX_FPS = 50.0
MAX_SIDE = 16383
"""Of webp; H.264 encoders end there too."""
MAX_ANIMATION_BYTES = 2**31
# The second form is what a killed process leaves behind.
FRAME_NAME = re.compile(rf"frame_\d+\.png|{re.escape(TEMPORARY_PREFIX)}.*")


def export_video(frames: object, path: str | os.PathLike[str], fps: float = 8.0, *, scale: int = 1) -> Path:
    """Writes frames to `path`, whole or not at all, and returns the path.

    `.mp4` is H.264 4:2:0 (odd sizes get one more row or column, a copy of the last), `.webp` is lossless,
    `.gif` has 256 colours per frame and times in hundredths of a second; a name without suffix, or an
    existing folder, is a folder of `frame_00000.png`, ... Missing parent folders are made.

    Args:
        frames: [T, H, W, 3] or [T, H, W, 1], numpy or torch, uint8 or floating in [0, 1].
        fps: frames per second, > 0.
        scale: each pixel becomes a square of this side.

    Raises:
        MediaError: frames or fps that make no video, an unknown suffix, PyAV missing for mp4, a disk that
            refuses.
    """
    target = check_target(path, fps, scale=scale)
    pixels = as_frames(frames)
    check_size(target, *pixels.shape[:3], scale=scale)
    kind = kind_of(target)
    with staged(target) as temporary:
        if kind == ".mp4":
            with Mp4Encoder(temporary, fps) as encoder:
                for frame in pixels:
                    encoder.write(enlarge(frame, scale))
        elif kind == "":
            temporary.mkdir()
            for index, frame in enumerate(pixels):
                Image.fromarray(enlarge(frame, scale)).save(temporary / png_name(index))
        else:
            with encoding(temporary, pixels.shape[1:]):
                _save_animation(temporary, kind, enlarge(pixels, scale), fps)
    return target


def check_target(
    path: str | os.PathLike[str], fps: float = 8.0, *, scale: int = 1, growing: bool = False
) -> Path:
    """Refuses, before any frame exists, a target that would end a long run in an error.

    growing: the target must be able to grow frame by frame (`open_writer`), which .webp and .gif cannot.

    Raises:
        MediaError: unknown suffix, fps or scale out of range, PyAV missing for mp4, a place that cannot be
            written, or a folder that holds other things than frames and so must not be replaced.
    """
    target = arguments.path("path", path)
    check_scale(scale)
    kind = kind_of(target)
    if growing and kind not in (".mp4", ""):
        raise MediaError(
            explain(
                "this kind of file cannot grow frame by frame",
                got=repr(target.name),
                expected=".mp4, or a name without a suffix: a folder of .png",
                fix="Stream into one of these, or generate a fixed number of frames and export them.",
            )
        )
    rate_of(fps)
    if kind == ".gif" and fps > GIF_MAX_FPS:
        raise MediaError(
            explain(
                "fps out of range for a gif",
                got=fps,
                expected=f"at most {GIF_MAX_FPS:g} (its clock ticks in hundredths of a second)",
                fix="Write .webp or .mp4 instead.",
            )
        )
    if kind == ".mp4":
        pyav()
    check_parents(target)
    if is_folder(target):
        foreign = [name for name in _listing(target) if not _is_frame(name)]
        if foreign:
            raise MediaError(
                explain(
                    f"{target} is a folder with other things in it",
                    got=", ".join(sorted(foreign)[:3]),
                    expected="an empty folder, or one with only frame_*.png, because it will be replaced",
                    fix="Choose a new folder.",
                )
            )
    return target


def check_size(target: Path, frames: int, height: int, width: int, *, scale: int = 1) -> None:
    """Refuses, before any frame exists, pictures that a file of this kind cannot hold, and animations that
    would not fit the memory, where all of their frames lie at once. Raises MediaError."""
    kind, side = kind_of(target), max(height, width) * scale
    if side > MAX_SIDE:
        raise MediaError(
            f"size of the pictures: got {height * scale} x {width * scale}, expected at most {MAX_SIDE} "
            "pixels on each side. Use a smaller scale."
        )
    if kind in (".webp", ".gif") and 3 * frames * height * width * scale**2 > MAX_ANIMATION_BYTES:
        raise MediaError(
            f"size of a {kind} animation: got {frames} frames of {height * scale} x {width * scale}, "
            f"expected at most {MAX_ANIMATION_BYTES >> 30} GiB of pixels. Use a smaller scale, or .mp4."
        )


def kind_of(target: Path) -> str:
    """The suffix in lower case; "" for a folder of png. Raises MediaError for an unknown suffix."""
    suffix = target.suffix.lower()
    folder = is_folder(target)
    if suffix and suffix not in SUFFIXES and not folder:
        raise MediaError(
            explain(
                "unknown kind of video file",
                got=repr(target.name),
                expected=f"a name ending in {', '.join(SUFFIXES)}, or no suffix: a folder of .png",
                fix="Change the name's ending.",
            )
        )
    if not suffix and not folder and target.exists():
        raise MediaError(f"{target} is a file: a name without a suffix is for a folder of .png. Use another.")
    return "" if folder else suffix


def _listing(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


def png_name(index: int) -> str:
    return f"frame_{index:05d}.png"


def _is_frame(name: str) -> bool:
    return FRAME_NAME.fullmatch(name) is not None


def _save_animation(path: Path, kind: str, frames: Pixels, fps: float) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    duration = round(1000.0 / fps) if kind == ".webp" else 10 * round(100.0 / fps)
    timing = timing_note(len(frames), duration)
    common = {"save_all": True, "append_images": rest, "duration": duration, "loop": 0}
    if kind == ".webp":
        first.save(path, "WEBP", lossless=True, method=4, xmp=timing, **common)
    else:
        first.save(path, "GIF", comment=timing, **common)
