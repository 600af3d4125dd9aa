# SPDX-License-Identifier: Apache-2.0
"""A picture, video or folder of pictures appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ardiff_engine.errors import ArdiffError, MediaError, explain


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` for a file or a folder that replaces `target` when the block ends.

    Everything is flushed to the disk before the rename. If the block fails, what was written is removed and
    `target` keeps its old content.

    Raises:
        MediaError: the disk is full or the folder cannot be written. Errors of this package pass through.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex}.{target.name}")
    make_parents(target)
    try:
        yield temporary
        for path in [*temporary.glob("*"), temporary]:
            _flush(path)
        if target.is_dir():
            _swap_folders(temporary, target)
        else:
            os.replace(temporary, target)
        _flush(target.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, ArdiffError):
            raise unwritable(target, error) from error
        raise


def make_parents(target: Path) -> None:
    """Makes the folder that `target` will lie in. Raises MediaError if that cannot be."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(target, error) from error


def check_parents(target: Path) -> None:
    """Refuses, without making anything, a target whose folder cannot be made or written."""
    folder = target.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise unwritable(target, NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(target, PermissionError(errno.EACCES, f"no permission to write in {folder}"))


def unwritable(target: Path, error: OSError) -> MediaError:
    """The error for a file system that refuses: full, read-only, a file where a folder should be."""
    return MediaError(
        explain(
            f"writing {target}",
            got=error.strerror or repr(error),
            expected="a folder with enough free space and write permission",
            fix="Free some space or choose another place; what was there before is unchanged.",
        )
    )


def _swap_folders(new: Path, target: Path) -> None:
    # A folder cannot be renamed over one that has files, so the old one steps aside first.
    old = target.with_name(f"{new.name}.old")
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
