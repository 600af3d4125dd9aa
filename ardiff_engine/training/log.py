# SPDX-License-Identifier: Apache-2.0
"""The training log: one JSON object per line, readable while it grows, continued on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ardiff_engine.weights.atomic import write_atomic


class TrainingLog:
    """Lines with at least "step". A resumed run first drops what lies after its checkpoint."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.exists():
            self.entries = [entry for entry in read_log(path) if entry["step"] <= resume_step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write_atomic(path, lambda file: file.write(text.encode()))

    def add(self, step: int, **values: float | str) -> None:
        entry = {"step": step} | {
            key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()
        }
        self.entries.append(entry)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line cut off by a crash is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries
