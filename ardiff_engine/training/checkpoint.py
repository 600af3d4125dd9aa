# SPDX-License-Identifier: Apache-2.0
"""Crash-safe training checkpoints: a folder per step, tensors as safetensors, everything else as JSON,
nothing pickled.

A checkpoint is written under a temporary name, flushed to the disk and renamed, so a folder named `step-<n>`
is complete. Its `state.json` also holds length and CRC-32 of each file, so that a damaged disk is noticed and
the checkpoint before is used.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ardiff_engine.errors import CheckpointError, explain

STATE_FILE = "state.json"
TEMPORARY_PREFIX = ".unfinished-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """tensors: one dict per file (`<name>.safetensors`). state: plain numbers, strings, lists and dicts."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes `folder/step-<step>` and removes all but the newest `keep` checkpoints. Raises CheckpointError
    if the disk refuses."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {}
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, path)
            files[path.name] = _fingerprint(path)
        text = json.dumps({"step": step, "files": files, "state": dict(state)}, indent=1)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            explain(
                f"writing checkpoint {final}",
                got=getattr(error, "strerror", None) or str(error),
                expected="a folder with free space and write permission",
                fix="Free some space; earlier checkpoints are unchanged and --resume continues from them.",
            )
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read in full; None when there is none.

    Raises CheckpointError when there are checkpoints and all of them are damaged.
    """
    found = checkpoints(folder)
    problems = []
    for path in reversed(found):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
    if not found:
        return None
    raise CheckpointError(
        explain(
            f"checkpoints in {folder}",
            got=f"{len(found)}, all damaged; the newest: {problems[0]}",
            expected="one that is complete",
            fix=f"Restore one from a backup, or remove {folder} to start anew.",
        )
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError for a missing, shortened or changed file."""
    try:
        description = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        tensors = {}
        for name, expected in description["files"].items():
            if _fingerprint(path / name) != expected:
                raise CheckpointError(
                    explain(
                        f"{path / name}",
                        got="other content than when it was written",
                        expected=expected,
                        fix="Use an older checkpoint.",
                    )
                )
            tensors[name.removesuffix(".safetensors")] = load_file(path / name)
        return Checkpoint(step=description["step"], tensors=tensors, state=description["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            explain(
                f"checkpoint {path}",
                got=repr(error),
                expected="a complete checkpoint folder",
                fix="Use an older checkpoint.",
            )
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left behind. Only while nobody else writes there."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
