# SPDX-License-Identifier: Apache-2.0
"""Crash-safe training checkpoints: a folder per step, tensors as safetensors, everything else as JSON,
nothing pickled.

A checkpoint appears whole or not at all. Its `checksums.json` holds length and CRC-32 of every other file, so
that a damaged disk is noticed and the checkpoint before is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import make_folder, staged
from ardiff_engine.parsing import check_regular, parsing, read_json
from ardiff_engine.training.checkpoint_parts import in_parts, is_part, names_in_parts, read_parts, write_parts
from ardiff_engine.training.processes import first_says, rank
from ardiff_engine.training.sharding import placed

STATE_FILE = "state.json"
CHECKSUM_FILE = "checksums.json"
FOLDER_NAME = re.compile(r"step-(\d{1,18})")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """path: its folder. tensors: one dict per file (`<name>.safetensors`); none of a checkpoint in parts.
    state: plain numbers, strings, lists and dicts."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def names(self, group: str) -> set[str]:
        """Of the tensors that were saved in a group."""
        return set(self.tensors.get(group, ())) if self.tensors else names_in_parts(self.path, group)

    def restore(self, live: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Every tensor gets what was saved under its group and name; both it and what was saved may be whole
        or in parts. CheckpointError, and nothing is touched: other names or shapes than were saved."""
        for group, own in live.items():
            if different := own.keys() ^ self.names(group):
                raise CheckpointError(f"{self.path} is of another run: {group} differs in {min(different)}.")
            for name, tensor in own.items() if self.tensors else ():
                if (saved := self.tensors[group][name].shape) != tensor.shape:
                    raise CheckpointError(
                        f"{self.path} is of another run: {group}, {name} is {list(saved)}, expected "
                        f"{list(tensor.shape)}."
                    )
        if not self.tensors:
            read_parts(self.path, live)
        with torch.no_grad():
            for group, saved_group in self.tensors.items():
                for name, tensor in live.get(group, {}).items():
                    tensor.copy_(placed(saved_group[name], tensor))


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes `folder/step-<step>`, and of the checkpoints up to it keeps the newest `keep`, itself included.

    By the first process alone if the tensors are whole. If some are split, by all of them together: each
    writes what it has, into a folder that all see.

    Raises CheckpointError, and removes nothing, if the disk refuses.
    """
    final, split = folder / f"step-{step:08d}", in_parts(tensors)
    with contextlib.ExitStack() as stack:

        def begin() -> Path:
            make_folder(folder)
            (path,) = stack.enter_context(staged(final))
            path.mkdir()
            return path

        temporary = first_says(begin) if split else begin()
        if split:
            write_parts(temporary, tensors)
        try:
            for name, group in {} if split else tensors.items():
                whole = {key: value.detach().cpu().contiguous() for key, value in group.items()}
                save_file(whole, temporary / f"{name}.safetensors")
        except SafetensorError as error:
            raise CheckpointError(
                f"writing checkpoint {final}: {error}. Earlier ones are unchanged."
            ) from error
        if rank():
            return final
        text = json.dumps({"step": step, "state": dict(state)}, indent=1)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        checksums = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        (temporary / CHECKSUM_FILE).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
    # Those after it are damaged, or the run would have gone on from them: they do not count.
    for old in [path for path in checkpoints(folder) if _step_of(path) <= step][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first. Raises CheckpointError for a name that no folder can have."""
    with parsing(folder, fix="Choose another folder."):
        found = [path for path in folder.glob("step-*") if FOLDER_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step_of)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that can be read in full; None when there is none. Those that are passed over are
    named in a warning.

    Raises CheckpointError when there are checkpoints and all of them are damaged.
    """
    found = checkpoints(folder)
    problems = []
    for path in reversed(found):
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning(
                "skipped a damaged checkpoint, going on from step %d: %s", checkpoint.step, problem
            )
        return checkpoint
    if not found:
        return None
    raise CheckpointError(
        f"checkpoints in {folder}: all {len(found)} are damaged. The newest: {problems[0]} "
        f"Restore one from a backup, or remove {folder} to start anew."
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError for a missing, added, shortened or changed file."""
    checksums = read_json(path / CHECKSUM_FILE)
    with parsing(path):
        present = {file.name for file in path.iterdir()} - {CHECKSUM_FILE}
    if not isinstance(checksums, dict) or set(checksums) != present or STATE_FILE not in present:
        raise CheckpointError(f"{path} does not hold the files that its {CHECKSUM_FILE} lists.")
    for name, expected in checksums.items():
        check_regular(path / name)
        with parsing(path / name):
            found = _fingerprint(path / name)
        if found != expected:
            raise CheckpointError(f"{path / name} is not what was written: its length or checksum differs.")
    values = read_json(path / STATE_FILE)
    step, state = (values.get("step"), values.get("state")) if isinstance(values, dict) else (None, None)
    if step != _step_of(path) or not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE_FILE} is not the state of step {_step_of(path)}.")
    tensors = {}
    for name in sorted(name for name in present - {STATE_FILE} if not is_part(name)):
        with parsing(path / name):
            tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Checkpoint(path, _step_of(path), tensors, state)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _fingerprint(path: Path) -> list[int]:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return [path.stat().st_size, checksum]
