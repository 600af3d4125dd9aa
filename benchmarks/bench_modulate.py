# SPDX-License-Identifier: Apache-2.0
"""modulate (LayerNorm, shift and scale per frame) against layer_norm, gather, multiply, add in PyTorch;
forward alone, and with backward against autograd through the same sequence. Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.modulate import modulate

WIDTH, FRAME = 1152, 32
OPPONENT = "layer_norm, gather, multiply, add"


def unfused(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    normed = torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-6)
    return normed * (1 + scale[ids]) + shift[ids]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("tokens", "beyond_cache"), [(512, False), (16384, True)])
def test_forward(benchmark: BenchmarkFixture, tokens: int, beyond_cache: bool, threads: int) -> None:
    x, table = torch.randn(tokens, WIDTH), torch.randn(2, tokens // FRAME, WIDTH)
    ids = (torch.arange(tokens) // FRAME).int()
    row = Row(
        op="modulate",
        shape=f"{tokens} x {WIDTH}",
        threads=threads,
        opponent=OPPONENT,
        bar=2.0 if beyond_cache else None,
        moved_bytes=2 * 4 * x.numel(),
        share_bar=0.8 if beyond_cache else None,
    )
    versus(
        benchmark,
        row,
        lambda: modulate(x, table[0], table[1], ids),
        lambda: unfused(x, table[0], table[1], ids),
    )


@pytest.mark.parametrize("threads", THREADS)
def test_backward(benchmark: BenchmarkFixture, threads: int) -> None:
    """The backward pass alone: the graph of one forward pass is walked again and again."""
    tokens = 8192
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    shift, scale = (torch.randn(tokens // FRAME, WIDTH, requires_grad=True) for _ in range(2))
    ids, dy = (torch.arange(tokens) // FRAME).int(), torch.randn(tokens, WIDTH)
    inputs = (x, shift, scale)
    fused, plain = modulate(*inputs, ids), unfused(*inputs, ids)
    row = Row(
        op="modulate backward",
        shape=f"{tokens} x {WIDTH}",
        threads=threads,
        opponent="autograd",
        bar=2.0,
        moved_bytes=3 * 4 * x.numel(),
    )
    versus(
        benchmark,
        row,
        lambda: torch.autograd.grad(fused, inputs, dy, retain_graph=True),
        lambda: torch.autograd.grad(plain, inputs, dy, retain_graph=True),
    )
