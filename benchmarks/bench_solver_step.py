# SPDX-License-Identifier: Apache-2.0
"""solver_step with two guidance branches against the same sums in PyTorch; `copy` moves the same bytes.

python -m pytest benchmarks/bench_solver_step.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import copy_of, native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.solver_step import solver_step


@pytest.mark.parametrize("noisy", [False, True], ids=["ddim", "noise"])
@pytest.mark.parametrize("side", ["ardiff", "pytorch", "copy"])
@pytest.mark.parametrize("shape", [(10, 128), (1024, 128), (256, 16384)], ids=str)
def test_solver_step(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int],
    side: str,
    noisy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, outs = torch.randn(shape), torch.randn(2, *shape)
    weights, coefficients = torch.randn(2, shape[0]), torch.randn(shape[0], 7)
    coefficients[:, 4 if not noisy else 5 :] = 0
    keys = torch.arange(5 * shape[0]).reshape(-1, 5) if noisy else None
    native_only(monkeypatch)

    def unfused() -> object:
        p, q, a, b, e, _, _ = (c[:, None] for c in coefficients.unbind(1))
        x0 = p * x + q * (weights[0, :, None] * outs[0] + weights[1, :, None] * outs[1])
        result = a * x + b * x0
        return (result + e * torch.randn(shape) if noisy else result), x0

    calls = {
        "ardiff": lambda: solver_step(x, outs, weights, coefficients, keys=keys),
        "pytorch": unfused,
        "copy": copy_of(5 * x.numel()),
    }
    run(benchmark, f"solver_step {shape} {'noise' if noisy else 'ddim'}", calls[side])
