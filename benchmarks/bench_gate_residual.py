# SPDX-License-Identifier: Apache-2.0
"""gate_residual_ against gather, multiply, add in PyTorch; the backward pass against autograd through the
same sequence. Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.gate_residual import gate_residual, gate_residual_

WIDTH, FRAME = 1152, 32


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("tokens", "beyond_cache"), [(512, False), (16384, True)])
def test_in_place(benchmark: BenchmarkFixture, tokens: int, beyond_cache: bool, threads: int) -> None:
    residual, branch = torch.randn(2, tokens, WIDTH)
    gate, ids = 1e-3 * torch.randn(tokens // FRAME, WIDTH), (torch.arange(tokens) // FRAME).int()
    row = Row(
        op="gate_residual_",
        shape=f"{tokens} x {WIDTH}",
        threads=threads,
        opponent="gather, multiply, add_",
        bar=2.0 if beyond_cache else None,
        moved_bytes=3 * 4 * residual.numel(),
        share_bar=0.8 if beyond_cache else None,
    )
    versus(
        benchmark,
        row,
        lambda: gate_residual_(residual, branch, gate, ids),
        lambda: residual.add_(gate[ids] * branch),
    )


@pytest.mark.parametrize("threads", THREADS)
def test_backward(benchmark: BenchmarkFixture, threads: int) -> None:
    """The backward pass alone: the graph of one forward pass is walked again and again."""
    tokens = 8192
    residual, branch, dy = torch.randn(3, tokens, WIDTH)
    branch.requires_grad_()
    gate = torch.randn(tokens // FRAME, WIDTH, requires_grad=True)
    ids = (torch.arange(tokens) // FRAME).int()
    fused, plain = gate_residual(residual, branch, gate, ids), residual + gate[ids] * branch
    row = Row(
        op="gate_residual backward",
        shape=f"{tokens} x {WIDTH}",
        threads=threads,
        opponent="autograd",
        bar=2.0,
        moved_bytes=3 * 4 * dy.numel(),
    )
    versus(
        benchmark,
        row,
        lambda: torch.autograd.grad(fused, (branch, gate), dy, retain_graph=True),
        lambda: torch.autograd.grad(plain, (branch, gate), dy, retain_graph=True),
    )
