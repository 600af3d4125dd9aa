# SPDX-License-Identifier: Apache-2.0
"""Folders for what a run writes."""

from __future__ import annotations

from pathlib import Path

from ardiff_engine.errors import CheckpointError, explain


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents, and returns it. Raises CheckpointError if the disk refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """The error for a disk that is full or read-only, and for a file where a folder should be."""
    return CheckpointError(
        explain(
            f"writing {path}",
            got=error.strerror or repr(error),
            expected="a folder with enough free space and write permission",
            fix="Free some space or choose another folder; older files are unchanged.",
        )
    )
