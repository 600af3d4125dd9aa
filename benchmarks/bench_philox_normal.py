# SPDX-License-Identifier: Apache-2.0
"""philox_normal against torch.randn (a sequential generator, not addressable by frame). No bar: the noise
that ops generate on the way has one, see bench_add_noise.py. Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.philox_normal import philox_normal


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("shape", [(16, 128), (1024, 16384)], ids=str)
def test_normal(benchmark: BenchmarkFixture, shape: tuple[int, int], threads: int) -> None:
    keys = torch.arange(5 * shape[0]).reshape(-1, 5)
    row = Row(op="philox_normal", shape=f"{shape[0]} x {shape[1]}", threads=threads, opponent="torch.randn")
    versus(benchmark, row, lambda: philox_normal(keys, shape[1]), lambda: torch.randn(shape))
