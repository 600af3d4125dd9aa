# SPDX-License-Identifier: Apache-2.0
"""How much a file may ask for. A few bytes can claim any picture, any length and any number of copies, so
every limit follows from the size of the file, and is checked before anything is built.

With n the size of the file in bytes:

* a picture has at most min(2^24 + 64 n, 2^26 + n / 4) pixels: 4096 x 4096 always, more in larger files;
* a video has at most 10,000 + n frames: a frame costs at least a byte, or is a copy of the one before;
* a film has at most min(10,000 + n, 2^23) samples, or as many of a fixed size as the file has room for;
* a whole video takes at most 512 MiB + 4 n. Whoever names a number of frames has decided for himself.
"""

from __future__ import annotations

from pathlib import Path

from ardiff_engine.errors import MediaError, explain


def max_pixels(file_bytes: int) -> int:
    """Pixels that one picture in a file of this size may have."""
    return min(2**24 + 64 * file_bytes, 2**26 + file_bytes // 4)


def check_picture(path: Path, width: int, height: int, file_bytes: int) -> None:
    """Raises MediaError for a picture that is empty or too large for its file."""
    if width < 1 or height < 1 or width * height > max_pixels(file_bytes):
        raise _too_much(path, f"pictures of {width} x {height}", f"1 to {max_pixels(file_bytes)} pixels")


def check_length(path: Path, frames: int, file_bytes: int) -> None:
    """Raises MediaError for a video with more frames than its file can hold."""
    limit = 10_000 + file_bytes
    if frames > limit:
        raise _too_much(path, f"{frames} frames", f"at most {limit}")


def check_samples(path: Path, samples: int, sample_bytes: int, file_bytes: int) -> None:
    """Raises MediaError for a film with more samples than its file can hold; `sample_bytes` is the size of
    each, if all have the same, or else 0."""
    limit = file_bytes // sample_bytes if sample_bytes else min(10_000 + file_bytes, 2**23)
    if samples > limit:
        raise _too_much(path, f"{samples} samples", f"at most {limit}")


def check_whole(path: Path, video_bytes: int, file_bytes: int) -> None:
    """Raises MediaError for a video that is too large to be read whole without being asked for by number."""
    limit = 2**29 + 4 * file_bytes
    if video_bytes > limit:
        raise MediaError(
            explain(
                f"{path} is too large to be read whole",
                got=f"{video_bytes / 2**20:.0f} MiB of frames",
                expected=f"at most {limit / 2**20:.0f} MiB",
                fix="Say how many frames you want (max_frames), or read windows of it (media.open_video).",
            )
        )


def _too_much(path: Path, claim: str, limit: str) -> MediaError:
    return MediaError(
        explain(
            f"{path} asks for more than a file of its size can hold",
            got=claim,
            expected=limit,
            fix="It is damaged or made to exhaust the memory. If it is right, encode it again, smaller.",
        )
    )
