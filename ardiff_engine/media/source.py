# SPDX-License-Identifier: Apache-2.0
"""Files from strangers are opened here, and what a library raises about them becomes one typed error.

A path names a file and nothing else: libraries get an open file, never the name, so that no name can be taken
for an address, a pattern or a protocol.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ardiff_engine.errors import MediaError, explain

# Enough to tell every kind in KINDS.
HEAD_BYTES = 12


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Around calls of a decoding library only: whatever they raise becomes a MediaError that names the file.

    Nobody can list what such a library raises for damaged input (ValueError, AssertionError, MemoryError,
    UnicodeDecodeError, ...), so nobody tries. Code of ours stays outside, so that its bugs stay bugs.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise undecodable(path, str(error) or type(error).__name__) from error


def undecodable(path: Path, reason: str) -> MediaError:
    return MediaError(
        explain(
            f"{path} cannot be decoded",
            got=reason,
            expected="a complete video file",
            fix="Check that it plays, or encode it again.",
        )
    )


def absent(path: Path) -> MediaError:
    return MediaError(
        explain(
            f"there is no video or picture at {path}",
            got="nothing",
            expected="a video file or a folder of pictures",
            fix="Check the path.",
        )
    )


def mode_of(path: Path) -> int:
    """The kind of thing at `path`, as `stat` tells it. Raises MediaError if there is nothing to be seen."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError as error:
        raise absent(path) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or a character that no file name can have
        raise undecodable(path, str(error)) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file at `path`, for reading. Raises MediaError at once for pipes, devices, sockets and folders."""
    if not stat.S_ISREG(mode_of(path)):
        raise undecodable(path, "no regular file")
    try:
        # Without O_NONBLOCK, a pipe that takes the file's place in this moment would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise undecodable(path, error.strerror or repr(error)) from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise undecodable(path, "no regular file")
        yield file


def size_of(file: BinaryIO) -> int:
    """The size in bytes of a file opened here."""
    return os.fstat(file.fileno()).st_size


def head_of(path: Path, file: BinaryIO) -> bytes:
    """The first bytes of a file, which tell its kind. Raises MediaError if the disk does not give them."""
    with decoding(path):
        file.seek(0)
        head = file.read(HEAD_BYTES)
        file.seek(0)
    return head
