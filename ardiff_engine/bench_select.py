# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest: only benchmarks whose row of the table, or whose name, holds given texts.

The row is known when a benchmark runs, so `row` is called with it before anything is timed
(benchmarks/versus.py); other benchmarks are found by their names alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WANTED, SEEN = "ARDIFF_BENCH_WANTED", "ARDIFF_BENCH_SEEN"
_by_name: list[bool] = [False]
"""Whether the benchmark that runs now was chosen by its name."""


def environment(wanted: Sequence[str], seen: Path) -> dict[str, str]:
    """For the process of pytest. seen: the file where rows are noted, one a line."""
    return {WANTED: json.dumps(list(wanted)), SEEN: str(seen)}


def row(op: str, shape: str, threads: int, opponent: str) -> None:
    """Skips the benchmark that has called if its row is not wanted."""
    import pytest

    if seen := os.environ.get(SEEN):
        with open(seen, "a", encoding="utf-8") as file:
            file.write(f"{op}: {shape}\n")
    if not _by_name[0] and not _holds(f"{op} {shape} threads={threads} {opponent}"):
        pytest.skip("not wanted")


def pytest_runtest_setup(item: Any) -> None:
    import pytest

    _by_name[0] = _holds(item.nodeid)
    if not _by_name[0] and "versus" not in item.function.__code__.co_names:
        pytest.skip("not wanted")


def _holds(text: str) -> bool:
    wanted: list[str] = json.loads(os.environ.get(WANTED, "[]"))
    return all(part.casefold() in text.casefold() for part in wanted)
