# SPDX-License-Identifier: Apache-2.0
"""gate_residual_ against gather, multiply, add in PyTorch, and with backward; `copy` moves the same bytes.

python -m pytest benchmarks/bench_gate_residual.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import copy_of, native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.gate_residual import gate_residual, gate_residual_


@pytest.mark.parametrize("side", ["ardiff", "pytorch", "copy"])
@pytest.mark.parametrize("shape", [(32, 1152), (589, 1152), (4712, 1152)], ids=str)
def test_in_place(
    benchmark: BenchmarkFixture, shape: tuple[int, int], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    residual, branch = torch.randn(2, *shape)
    gate, ids = 1e-3 * torch.randn(-(-shape[0] // 32), shape[1]), (torch.arange(shape[0]) // 32).int()
    native_only(monkeypatch)
    calls = {
        "ardiff": lambda: gate_residual_(residual, branch, gate, ids),
        "pytorch": lambda: residual.add_(gate[ids] * branch),
        "copy": copy_of(3 * residual.numel()),
    }
    run(benchmark, f"gate_residual_ {shape}", calls[side])


@pytest.mark.parametrize("side", ["ardiff", "pytorch"])
def test_backward(benchmark: BenchmarkFixture, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (4712, 1152)
    residual, branch, dy = torch.randn(3, *shape)
    branch.requires_grad_()
    gate = torch.randn(-(-shape[0] // 32), shape[1], requires_grad=True)
    ids = (torch.arange(shape[0]) // 32).int()
    native_only(monkeypatch)

    def step() -> object:
        fused = side == "ardiff"
        out = gate_residual(residual, branch, gate, ids) if fused else residual + gate[ids] * branch
        return torch.autograd.grad(out, (branch, gate), dy)

    run(benchmark, f"gate_residual forward and backward {shape}", step)
