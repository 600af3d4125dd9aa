# SPDX-License-Identifier: Apache-2.0
"""How hard the tests try.

`make test` finds every kind of fault, in minutes. `make test-all` (ARDIFF_TESTS=all) tries each in all its
variants: ten times the examples, every dtype and shape of the emulated GPU kernels, every instruction set,
and the tests marked `slow`.
"""

from __future__ import annotations

import os

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
