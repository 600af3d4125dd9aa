# SPDX-License-Identifier: Apache-2.0
"""copy_pages_ and rotate_pages_ (28 layers, 16 heads of 72, 8 pages of 32 rows) against indexing in PyTorch.

python -m pytest benchmarks/bench_pages.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.pages import copy_pages_, reference_rotate_pages_, rotate_pages_

SRC, DST = torch.arange(8), torch.arange(8, 16)


@pytest.mark.parametrize("side", ["ardiff", "pytorch"])
@pytest.mark.parametrize("op", ["copy_pages_", "rotate_pages_"])
def test_pages(benchmark: BenchmarkFixture, op: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    k, v = torch.randn(2, 28, 16, 16, 32, 72)
    frequencies = 10000.0 ** (-torch.arange(0, 72, 2, dtype=torch.float64) / 72)
    native_only(monkeypatch)

    def index_copy() -> None:
        k[:, DST] = k[:, SRC]
        v[:, DST] = v[:, SRC]

    calls = {
        ("copy_pages_", "ardiff"): lambda: copy_pages_(k, v, SRC, DST),
        ("copy_pages_", "pytorch"): index_copy,
        ("rotate_pages_", "ardiff"): lambda: rotate_pages_(k, SRC, SRC, frequencies),
        ("rotate_pages_", "pytorch"): lambda: reference_rotate_pages_(k, SRC, SRC, frequencies, None),
    }
    run(benchmark, op, calls[op, side])
