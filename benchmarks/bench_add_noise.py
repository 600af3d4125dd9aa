# SPDX-License-Identifier: Apache-2.0
"""add_noise (v target) against randn, multiply, add in PyTorch, with generated and with given noise.
Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.add_noise import add_noise


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("rows", "beyond_cache"), [(16, False), (1024, True)])
@pytest.mark.parametrize("given", [False, True], ids=["generated", "given"])
def test_add_noise(
    benchmark: BenchmarkFixture, rows: int, beyond_cache: bool, given: bool, threads: int
) -> None:
    shape = (rows, 16384)
    x0, noise = torch.randn(2, *shape)
    signal, sigma = torch.rand(2, rows)
    keys = torch.arange(5 * rows).reshape(-1, 5)
    source = {"noise": noise} if given else {"keys": keys}

    def unfused() -> object:
        a, s, eps = signal[:, None], sigma[:, None], noise if given else torch.randn(shape)
        return a * x0 + s * eps, a * eps - s * x0

    row = Row(
        op="add_noise, noise given" if given else "add_noise",
        shape=f"{rows} x {shape[1]}",
        threads=threads,
        opponent="multiply, add" if given else "randn, multiply, add",
        bar=2.0 if beyond_cache else None,
        moved_bytes=(4 if given else 3) * 4 * x0.numel(),
        share_bar=0.8 if beyond_cache else None,
    )
    versus(benchmark, row, lambda: add_noise(x0, signal, sigma, target="v", **source), unfused)
