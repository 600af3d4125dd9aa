# SPDX-License-Identifier: Apache-2.0
"""frame_attention in training against autograd through SDPA with a boolean mask. Convention:
benchmarks/README.md.

16 frames of 32 tokens, frame f sees frames 0..f, batch 4, float32; the backward pass alone and forward +
backward. Half of the logits are never computed here, which SDPA computes and masks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import scaled_dot_product_attention
from versus import THREADS, Row, versus

from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

BATCH, FRAMES, TOKENS = 4, 16, 32

Side = tuple[Callable[[], torch.Tensor], tuple[torch.Tensor, ...]]


def ours(heads: int, dim: int) -> Side:
    pages = [list(range(b * FRAMES, (b + 1) * FRAMES)) for b in range(BATCH)]
    sizes, seen = [[TOKENS] * FRAMES] * BATCH, [list(range(1, FRAMES + 1))] * BATCH
    table = FrameTable.build(sizes, pages, sizes, seen)
    q = torch.randn(BATCH * FRAMES * TOKENS, heads, dim, requires_grad=True)
    k, v = (torch.randn(BATCH * FRAMES, heads, TOKENS, dim, requires_grad=True) for _ in "kv")
    return lambda: frame_attention(q, k, v, table), (q, k, v)


def sdpa(heads: int, dim: int) -> Side:
    frame = torch.arange(FRAMES * TOKENS) // TOKENS
    mask = frame[:, None] >= frame[None, :]
    q, k, v = (torch.randn(BATCH, heads, FRAMES * TOKENS, dim, requires_grad=True) for _ in "qkv")
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask), (q, k, v)


def step(side: Side, whole: bool) -> Callable[[], object]:
    """The backward pass of one forward pass again and again; whole: both passes."""
    forward, inputs = side
    output = forward()
    gradient = torch.randn_like(output)
    if whole:
        return lambda: torch.autograd.grad(forward(), inputs, gradient)
    return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("whole", [False, True], ids=["backward", "both"])
@pytest.mark.parametrize(("heads", "dim"), [(6, 64), (16, 72)])
def test_training(benchmark: BenchmarkFixture, heads: int, dim: int, whole: bool, threads: int) -> None:
    row = Row(
        op="frame_attention forward + backward" if whole else "frame_attention backward",
        shape=f"{BATCH} x {FRAMES} frames x {TOKENS}, {heads} x {dim}",
        threads=threads,
        opponent="SDPA, boolean mask",
        bar=2.0,
    )
    versus(benchmark, row, step(ours(heads, dim), whole), step(sdpa(heads, dim), whole))
