# SPDX-License-Identifier: Apache-2.0
"""pool_pages_ (28 layers, 16 heads of 72, five pages of 256 rows merged into one) against gathered rows in
PyTorch. Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.pool_pages import pool_pages_, reference_pool_pages_

LAYERS, HEADS, ROWS, DIM, TAPS = 28, 16, 256, 72, 5
SHAPE = f"{LAYERS} x {TAPS} x {HEADS} x {ROWS} x {DIM}"
VALUES = LAYERS * HEADS * ROWS * DIM


@pytest.mark.parametrize("threads", THREADS)
def test_pool(benchmark: BenchmarkFixture, threads: int) -> None:
    k = torch.randn(LAYERS, TAPS + 1, HEADS, ROWS, DIM)
    weights = torch.randn(LAYERS, TAPS, HEADS, DIM)
    sources = torch.arange(TAPS * ROWS).reshape(ROWS, TAPS)
    targets = TAPS * ROWS + torch.arange(ROWS)
    row = Row("pool_pages_", SHAPE, threads, "gather, scale, sum", moved_bytes=4 * (TAPS + 1) * VALUES)
    versus(
        benchmark,
        row,
        lambda: pool_pages_(k, sources, targets, weights),
        lambda: reference_pool_pages_(k, sources, targets, weights),
    )
