# SPDX-License-Identifier: Apache-2.0
"""bias_gelu against add and torch's GELU, forward and backward. Convention: benchmarks/README.md."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.bias_gelu import bias_gelu, reference_bias_gelu

WIDTH = 1536


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("tokens", "beyond_cache"), [(2356, False), (16384, True)])
def test_bias_gelu(
    benchmark: BenchmarkFixture, tokens: int, beyond_cache: bool, backward: bool, threads: int
) -> None:
    """The backward pass alone: the graph of one forward pass is walked again and again."""
    x = torch.randn(tokens, WIDTH, requires_grad=backward)
    bias = torch.randn(WIDTH, requires_grad=backward)
    row = Row(
        op="bias_gelu backward" if backward else "bias_gelu",
        shape=f"{tokens} x {WIDTH}",
        threads=threads,
        opponent="autograd" if backward else "add, gelu",
        bar=2.0 if beyond_cache else None,
        moved_bytes=(3 if backward else 2) * 4 * x.numel(),
    )
    if not backward:
        versus(benchmark, row, lambda: bias_gelu(x, bias), lambda: reference_bias_gelu(x, bias))
        return
    ours, plain, dy = bias_gelu(x, bias), reference_bias_gelu(x, bias), torch.randn(tokens, WIDTH)
    versus(
        benchmark,
        row,
        lambda: torch.autograd.grad(ours, (x, bias), dy, retain_graph=True),
        lambda: torch.autograd.grad(plain, (x, bias), dy, retain_graph=True),
    )
