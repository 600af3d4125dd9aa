# SPDX-License-Identifier: Apache-2.0
"""solver_step with two guidance branches against the same sums in PyTorch, without noise (DDIM) and with.
Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.solver_step import solver_step


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("rows", "beyond_cache"), [(16, False), (512, True)])
@pytest.mark.parametrize("noisy", [False, True], ids=["ddim", "noise"])
def test_solver_step(
    benchmark: BenchmarkFixture, rows: int, beyond_cache: bool, noisy: bool, threads: int
) -> None:
    shape = (rows, 16384)
    x, outs = torch.randn(shape), torch.randn(2, *shape)
    weights, coefficients = torch.randn(2, rows), torch.randn(rows, 9)
    coefficients[:, 5 if noisy else 4 : 8] = 0
    coefficients[:, 8] = torch.inf
    keys = torch.arange(5 * rows).reshape(-1, 5) if noisy else None

    def unfused() -> object:
        p, q, a, b, e = (c[:, None] for c in coefficients[:, :5].unbind(1))
        x0 = p * x + q * (weights[0, :, None] * outs[0] + weights[1, :, None] * outs[1])
        result = a * x + b * x0
        return (result + e * torch.randn(shape) if noisy else result), x0

    row = Row(
        op="solver_step, noise" if noisy else "solver_step, ddim",
        shape=f"2 x {rows} x {shape[1]}",
        threads=threads,
        opponent="the sums in PyTorch, randn" if noisy else "the sums in PyTorch",
        bar=2.0 if beyond_cache else None,
        moved_bytes=5 * 4 * x.numel(),
        share_bar=0.8 if beyond_cache else None,
    )
    versus(benchmark, row, lambda: solver_step(x, outs, weights, coefficients, keys=keys), unfused)
