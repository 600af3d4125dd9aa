# SPDX-License-Identifier: Apache-2.0
"""A plugin of pytest: only benchmarks whose row of the table, or whose name, holds given texts.

The row is known when a benchmark runs, so `row` is called with it before anything is timed
(benchmarks/versus.py); other benchmarks are found by their names alone. Making the inputs takes its time too,
so what can be seen before is: a number of threads, and a word that the file does not have.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

WANTED, SEEN = "ARDIFF_BENCH_WANTED", "ARDIFF_BENCH_SEEN"
_by_name: list[bool] = [False]
"""Whether the benchmark that runs now was chosen by its name."""


def environment(wanted: Sequence[str], seen: Path) -> dict[str, str]:
    """For the process of pytest. seen: the file where rows, or at least ops, are noted, one a line."""
    return {WANTED: json.dumps(list(wanted)), SEEN: str(seen)}


def row(op: str, shape: str, threads: int, opponent: str) -> None:
    """Skips the benchmark that has called if its row is not wanted."""
    _note(f"{op}: {shape}")
    if not _by_name[0] and not _holds(f"{op} {shape} threads={threads} {opponent}"):
        _skip()


def pytest_runtest_setup(item: Any) -> None:
    _by_name[0] = _holds(item.nodeid)
    if _by_name[0]:
        return
    source = _source(item.module)
    if "versus" not in item.function.__code__.co_names or not _possible(item, source):
        for op in re.findall(r"\bop=f?\"([^\"{]+)", source):
            _note(op)
        _skip()


def _possible(item: Any, source: str) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for text in _wanted():
        name, _, value = text.partition("=")
        if name in parameters and str(parameters[name]) != value:
            return False
        if re.fullmatch(r"[a-z_]+", text) and text not in source.casefold():
            return False
    return True


@cache
def _source(module: Any) -> str:
    return inspect.getsource(module)


def _wanted() -> list[str]:
    return [str(text).casefold() for text in json.loads(os.environ.get(WANTED, "[]"))]


def _holds(text: str) -> bool:
    return all(part in text.casefold() for part in _wanted())


def _note(found: str) -> None:
    if seen := os.environ.get(SEEN):
        with open(seen, "a", encoding="utf-8") as file:
            file.write(f"{found}\n")


def _skip() -> None:
    import pytest

    pytest.skip("not wanted")
