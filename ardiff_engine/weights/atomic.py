# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all: write beside the target, flush to the disk, rename over the target."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ardiff_engine.errors import CheckpointError, explain

TEMPORARY_SUFFIX = ".ardiff-tmp"


@contextlib.contextmanager
def staged(*targets: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Temporary paths to write, one per target and in the same folder; they replace them at the end.

    All temporary files are complete and flushed to the disk before the first target is replaced. If the block
    or the flush fails, the temporary files are removed and every target keeps its old content.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written. Other errors of the block pass
            through.
    """
    finals = [Path(target) for target in targets]
    temporaries = [path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}") for path in finals]
    try:
        yield temporaries
        for path in temporaries:
            _flush(path)
        for path, final in zip(temporaries, finals, strict=True):
            os.replace(path, final)
        for folder in {final.parent for final in finals}:
            _flush(folder)
    except BaseException as error:
        for path in temporaries:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                explain(
                    f"writing {', '.join(str(path) for path in finals)}",
                    got=error.strerror or repr(error),
                    expected="a folder with enough free space and write permission",
                    fix="Free some space or choose another folder; older files are unchanged.",
                )
            ) from error
        raise


def write_atomic(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Calls `writer` with an open binary file; `path` gets its content once that is complete and on the disk.

    Raises CheckpointError if the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    with staged(path) as (temporary,), open(temporary, "xb") as file:
        writer(file)


def remove_stale(folder: str | os.PathLike[str]) -> list[Path]:
    """Removes what a killed process left half-written in `folder`. Only call it while nobody else writes
    there."""
    stale = sorted(Path(folder).glob(f".*{TEMPORARY_SUFFIX}"))
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
