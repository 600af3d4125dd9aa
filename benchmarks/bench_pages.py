# SPDX-License-Identifier: Apache-2.0
"""copy_pages_ and rotate_pages_ (28 layers, 16 heads of 72, 8 pages of 32 rows) against indexing in PyTorch.
Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.pages import copy_pages_, reference_rotate_pages_, rotate_pages_

SRC, DST = torch.arange(8), torch.arange(8, 16)
LAYERS, HEADS, ROWS, DIM = 28, 16, 32, 72
SHAPE = f"{LAYERS} x 8 x {HEADS} x {ROWS} x {DIM}"
VALUES = LAYERS * 8 * HEADS * ROWS * DIM


@pytest.mark.parametrize("threads", THREADS)
def test_copy(benchmark: BenchmarkFixture, threads: int) -> None:
    k, v = torch.randn(2, LAYERS, 16, HEADS, ROWS, DIM)

    def index_copy() -> None:
        k[:, DST] = k[:, SRC]
        v[:, DST] = v[:, SRC]

    row = Row("copy_pages_", SHAPE, threads, "index read, index write", moved_bytes=4 * 4 * VALUES)
    versus(benchmark, row, lambda: copy_pages_(k, v, SRC, DST), index_copy)


@pytest.mark.parametrize("threads", THREADS)
def test_rotate(benchmark: BenchmarkFixture, threads: int) -> None:
    k = torch.randn(LAYERS, 16, HEADS, ROWS, DIM)
    frequencies = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    row = Row("rotate_pages_", SHAPE, threads, "the formula in PyTorch", moved_bytes=2 * 4 * VALUES)
    versus(
        benchmark,
        row,
        lambda: rotate_pages_(k, SRC, SRC, frequencies),
        lambda: reference_rotate_pages_(k, SRC, SRC, frequencies, None),
    )
