# SPDX-License-Identifier: Apache-2.0
"""How hard the tests try.

`make test` finds every kind of fault, in minutes. `make test-all` (ARDIFF_TESTS=all) tries each in all its
variants: ten times the examples, every dtype and shape of the emulated GPU kernels, every instruction set,
and the tests marked `slow`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

import pytest

ALL = os.environ.get("ARDIFF_TESTS") == "all"


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
