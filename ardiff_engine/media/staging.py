# SPDX-License-Identifier: Apache-2.0
"""A picture, video or folder of pictures appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ardiff_engine import files
from ardiff_engine.errors import MediaError


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary path for a file or a folder that replaces `target` when the block ends (see
    `files.staged`); parents are made.

    Raises:
        MediaError: the disk is full or the folder cannot be written. Errors of this package pass through.
    """
    make_parents(target)
    with files.staged(target, error=MediaError) as (temporary,):
        yield temporary


def make_parents(target: Path) -> None:
    """Makes the folder that `target` will lie in. Raises MediaError if that cannot be."""
    files.make_folder(target.parent, error=MediaError)


def is_folder(target: Path) -> bool:
    """Whether `target` is a folder. Raises MediaError if it cannot be a file or a folder to write."""
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unwritable(target, error) from error
    except ValueError as error:  # a NUL, or a character that no file name can have
        raise unwritable(target, OSError(errno.EINVAL, f"no name for a file ({error})")) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise unwritable(
            target, OSError(errno.EINVAL, "a device, a pipe or a socket, not a file or a folder")
        )
    return stat.S_ISDIR(mode)


def check_parents(target: Path) -> None:
    """Refuses, without making anything, a target whose folder cannot be made or written."""
    folder = target.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not is_folder(folder):
        raise unwritable(target, NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(target, PermissionError(errno.EACCES, f"no permission to write in {folder}"))


def unwritable(target: Path, error: OSError) -> MediaError:
    """The error for a file system that refuses: full, read-only, a file where a folder should be."""
    return files.unwritable(target, error, MediaError)
