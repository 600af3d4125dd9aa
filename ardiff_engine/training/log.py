# SPDX-License-Identifier: Apache-2.0
"""The training log: one JSON object per line, readable while it grows, continued on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ardiff_engine.errors import CheckpointError
from ardiff_engine.files import make_folder, unwritable, write_atomic
from ardiff_engine.parsing import check_regular, parse_json, parsing


class TrainingLog:
    """Lines with at least "step". A resumed run first drops what lies after its checkpoint.

    Raises CheckpointError if the disk refuses.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        make_folder(path.parent)
        if resume_step is not None and path.exists():
            self.entries = [entry for entry in read_log(path) if entry["step"] <= resume_step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write_atomic(path, text.encode())

    def add(self, step: int, **values: float | str) -> None:
        entry = {"step": step} | {
            key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()
        }
        self.entries.append(entry)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise unwritable(self.path, error, CheckpointError) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line cut off by a crash is left out. Raises CheckpointError for a file that
    cannot be read."""
    check_regular(path)
    with parsing(path, fix="Correct its permissions, or remove it."):
        text = path.read_text(encoding="utf-8", errors="replace")
    entries = []
    for line in text.splitlines():
        try:
            entry = parse_json(line, path)
        except CheckpointError:
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
    return entries
