# SPDX-License-Identifier: Apache-2.0
"""How hard the tests try.

`make test` finds every kind of fault, in minutes. `make test-all` (ARDIFF_TESTS=all) tries each in all its
variants: ten times the examples, every dtype and shape of the emulated GPU kernels, every instruction set,
and the tests marked `slow`. `make test-long` (ARDIFF_TESTS=long) leaves out of these what `make test` runs
in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

ASKED = os.environ.get("ARDIFF_TESTS", "")
if ASKED not in ("", "all", "long"):
    raise pytest.UsageError(f"ARDIFF_TESTS: got {ASKED!r}, expected all, long, or nothing.")
ALL = ASKED != ""

EMULATED = {"machine", "emulated", "emulated_modules"}
"""Fixtures of tests that run GPU kernels on the CPU."""
COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""In `config.stash`: the tests of this run, also those that are left out."""


def examples(full: int) -> int:
    """Examples of a property test that tries `full` of them in `make test-all`."""
    return full if ALL else max(10, full // 10)


def seeds(full: int) -> range:
    """Seeds of a randomised test, likewise."""
    return range(full if ALL else max(3, full // 10))


def mixed(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations of `values`, one from each: all of them in `make test-all`. Else so many that every two
    values of two of them come together: most faults take no more than two to show."""
    rows = covering(list(product(*[range(len(own)) for own in values])))
    return [tuple(own[place] for own, place in zip(values, row, strict=True)) for row in rows]


def covering(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of these combinations as many as `mixed` takes, where not every value goes with every other."""
    return rows if ALL else list(_covering(rows))


def _covering(rows: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing = set().union(*pairs.values())
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        yield best


def chosen(items: Sequence[pytest.Item], asked: str = ASKED) -> list[pytest.Item]:
    """Of all tests those that are asked for: "" leaves out `slow` ones and takes one case of each test of
    emulated GPU kernels; "all"; "long" leaves out those that "" runs in the same way."""
    if asked:
        return [item for item in items if asked == "all" or not _same_in_both(item)]
    seen: set[str] = set()
    kept: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        if _of_kernels(item):
            function = item.nodeid.partition("[")[0]
            if function in seen or item.get_closest_marker("gpu"):
                continue
            seen.add(function)
        kept.append(item)
    return kept


def _same_in_both(item: pytest.Item) -> bool:
    return not (item.get_closest_marker("slow") or _of_kernels(item) or _goes_by_effort(item.path))


def _of_kernels(item: pytest.Item) -> bool:
    emulated = EMULATED.intersection(getattr(item, "fixturenames", ()))
    return bool(emulated) or item.path.name.startswith("test_triton")


@cache
def _goes_by_effort(path: Path) -> bool:
    """Whether anything in a file, or in what it imports of the tests' own modules, goes by how hard the tests
    try."""
    left, seen = [path], {path}
    while left:
        text = left.pop().read_text()
        found = re.findall(r"^ *(?:from|import) ([\w.]+)(?: import (\w+))?", text, re.MULTILINE)
        names = {name for module, part in found for name in (module, f"{module}.{part}")}
        files = {Path(__file__).parent / f"{name.replace('.', '/')}.py" for name in names}
        new = [file for file in files - seen if file.exists()]
        left += new
        seen.update(new)
    return Path(__file__) in seen
