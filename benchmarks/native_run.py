# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of element-wise ops share: a table per shape, and a copy of the same bytes as floor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture


def run(benchmark: BenchmarkFixture, group: str, call: Callable[[], object]) -> None:
    benchmark.group = group
    benchmark.pedantic(call, rounds=60, warmup_rounds=3)


def native_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise instead of timing PyTorch under the name of a kernel."""
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")


def copy_of(values_moved: int) -> Callable[[], object]:
    """Reads and writes `values_moved` floats together: what memory alone would cost."""
    source = torch.randn(max(1, values_moved // 2))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
