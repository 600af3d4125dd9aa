# SPDX-License-Identifier: Apache-2.0
"""modulate against layer_norm, gather, multiply, add in PyTorch, forward and with backward; `copy` moves the
same bytes.

python -m pytest benchmarks/bench_modulate.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import copy_of, native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.modulate import modulate

SHAPES = [(32, 1152), (589, 1152), (4712, 1152)]


def unfused(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    normed = torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-6)
    return normed * (1 + scale[ids]) + shift[ids]


@pytest.mark.parametrize("side", ["ardiff", "pytorch", "copy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(
    benchmark: BenchmarkFixture, shape: tuple[int, int], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, width = shape
    x, table = torch.randn(shape), torch.randn(2, -(-tokens // 32), width)
    ids = (torch.arange(tokens) // 32).int()
    native_only(monkeypatch)
    calls = {
        "ardiff": lambda: modulate(x, table[0], table[1], ids),
        "pytorch": lambda: unfused(x, table[0], table[1], ids),
        "copy": copy_of(2 * x.numel()),
    }
    run(benchmark, f"modulate {shape}", calls[side])


@pytest.mark.parametrize("side", ["ardiff", "pytorch"])
def test_backward(benchmark: BenchmarkFixture, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, width = 4712, 1152
    x = torch.randn(tokens, width, requires_grad=True)
    table = torch.randn(2, -(-tokens // 32), width, requires_grad=True)
    ids, dy = (torch.arange(tokens) // 32).int(), torch.randn(tokens, width)
    native_only(monkeypatch)
    forward = modulate if side == "ardiff" else unfused
    run(
        benchmark,
        f"modulate forward and backward {(tokens, width)}",
        lambda: torch.autograd.grad(forward(x, table[0], table[1], ids), (x, table), dy),
    )
