# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all: write beside the target, flush to the disk, rename.

What is being written lies in a folder `.ardiff-tmp-<target>-<n>` beside the target, and its writer holds a
lock on that folder. The kernel drops the lock when a process ends, however it ends. So what a killed process
left is recognised without guessing and removed at the next write to the same target, and what another
process is still writing is left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from ardiff_engine.errors import ArdiffError, CheckpointError, explain

Error = TypeVar("Error", bound=ArdiffError)

TEMPORARY_PREFIX = ".ardiff-tmp-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged(
    *targets: str | os.PathLike[str], error: type[ArdiffError] = CheckpointError
) -> Iterator[list[Path]]:
    """Paths to write, one per target and with its name, each a file or a folder; they replace the targets at
    the end.

    Everything is complete and flushed to the disk before the first target is replaced. If the block or the
    flush fails, what was written is removed and every target keeps its old content. A folder replaces a
    folder in one step where the file system can exchange two names.

    Raises:
        error: the disk is full, the folder cannot be written, or a target is a device, a pipe or a socket.
            Other errors of the block, and those of this package, pass through.
    """
    finals = [Path(target) for target in targets]
    with contextlib.ExitStack() as stack:
        try:
            staging = [stack.enter_context(_staging_folder(final)) for final in finals]
            written = [folder / final.name for folder, final in zip(staging, finals, strict=True)]
            yield written
            for path in written:
                _flush_all(path)
            for path, final in zip(written, finals, strict=True):
                _replace(path, final)
            for folder in {final.parent for final in finals}:
                _flush(folder)
        except OSError as failure:
            if isinstance(failure, ArdiffError):
                raise
            raise unwritable(", ".join(map(str, finals)), failure, error) from failure


def write_atomic(
    path: str | os.PathLike[str],
    content: bytes | Callable[[BinaryIO], object],
    *,
    error: type[ArdiffError] = CheckpointError,
) -> None:
    """`path` gets `content`, or what a function writes into the open file it is given, once that is complete
    and on the disk.

    Raises `error` if the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    with staged(path, error=error) as (temporary,), open(temporary, "xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)


def check_writable(path: str | os.PathLike[str], *, error: type[ArdiffError] = CheckpointError) -> None:
    """Raises `error` if `write_atomic` could not write `path` now."""
    try:
        with _staging_folder(Path(path)):
            pass
    except (OSError, ValueError) as failure:
        raise unwritable(path, _as_os_error(failure), error) from failure


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left in `folder`, whatever they were writing."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = _locked(path, made=False)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def make_folder(path: str | os.PathLike[str], *, error: type[ArdiffError] = CheckpointError) -> Path:
    """Makes a folder and its parents, and returns it. Raises `error` if the disk refuses."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as failure:
        raise unwritable(folder, _as_os_error(failure), error) from failure
    return folder


def unwritable(what: object, failure: OSError, error: type[Error]) -> Error:
    """The error for a disk that is full or read-only, and for a file where a folder should be."""
    return error(
        explain(
            f"writing {what}",
            got=failure.strerror or repr(failure),
            expected="a folder with enough free space and write permission",
            fix="Free some space or choose another place; what was there before is unchanged.",
        )
    )


@contextlib.contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target`, locked by this process; removed at the end."""
    _check_target(target)
    folder, lock = _lock_folder(target)
    try:
        for leftover in folder.iterdir():
            _remove(leftover)
        yield folder
    finally:
        # Removed while still locked: nobody else can have begun to write here.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _check_target(target: Path) -> None:
    try:
        found = target.stat()
    except FileNotFoundError:
        return
    except ValueError as failure:
        raise _as_os_error(failure) from failure
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise OSError(errno.EINVAL, "a device, a pipe or a socket, not a file or a folder")


def _lock_folder(target: Path) -> tuple[Path, int]:
    # A digest, because the name itself may already be as long as the file system allows.
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    number = 0
    while True:
        folder = target.parent / f"{TEMPORARY_PREFIX}{digest}-{number}"
        lock = _locked(folder, made=_made(folder))
        if lock is not None:
            return folder, lock
        number += 1


def _as_os_error(failure: OSError | ValueError) -> OSError:
    """ValueError is what Python makes of a NUL character and of what the file system's encoding lacks."""
    if isinstance(failure, OSError):
        return failure
    return OSError(errno.EINVAL, f"no name for a file ({failure})")


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _locked(folder: Path, *, made: bool) -> int | None:
    """An open descriptor that holds the lock of `folder`; None if another writer holds it or removed it.

    Where the file system has no locks, a folder that this process has just made is as good as locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    free = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        free = made
    finally:
        if not free:
            os.close(descriptor)
    return descriptor if free else None


def _replace(new: Path, target: Path) -> None:
    if not (new.is_dir() and target.is_dir()):
        os.replace(new, target)
    elif not _exchange(new, target):
        old = new.with_name(f"{new.name}.old")
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step. False where the system or the file system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_all(path: Path) -> None:
    for inner in path.rglob("*"):
        _flush(inner)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
