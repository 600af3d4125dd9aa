# SPDX-License-Identifier: Apache-2.0
"""A block-causal training step: frame_attention against autograd through SDPA with a boolean mask.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_frame_attention_backward.py

16 frames of 32 tokens, frame f sees frames 0..f, batch 4, float32; the backward pass alone and forward +
backward. Half of the logits are never computed here, which SDPA computes and masks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import scaled_dot_product_attention

from ardiff_engine._native import native
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

MODULE = native()
ISAS = [isa for isa in MODULE.build_info()["isas"] if isa != "scalar"] if MODULE is not None else []
BATCH, FRAMES, TOKENS = 4, 16, 32
HEADS = ((6, 64), (16, 72))

Forward = Callable[[], torch.Tensor]


def ours(heads: int, dim: int) -> tuple[Forward, tuple[torch.Tensor, ...]]:
    pages = [list(range(b * FRAMES, (b + 1) * FRAMES)) for b in range(BATCH)]
    sizes, seen = [[TOKENS] * FRAMES] * BATCH, [list(range(1, FRAMES + 1))] * BATCH
    table = FrameTable.build(sizes, pages, sizes, seen)
    q = torch.randn(BATCH * FRAMES * TOKENS, heads, dim, requires_grad=True)
    k, v = (torch.randn(BATCH * FRAMES, heads, TOKENS, dim, requires_grad=True) for _ in "kv")
    return lambda: frame_attention(q, k, v, table), (q, k, v)


def sdpa(heads: int, dim: int) -> tuple[Forward, tuple[torch.Tensor, ...]]:
    frame = torch.arange(FRAMES * TOKENS) // TOKENS
    mask = frame[:, None] >= frame[None, :]
    q, k, v = (torch.randn(BATCH, heads, FRAMES * TOKENS, dim, requires_grad=True) for _ in "qkv")
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask), (q, k, v)


def run(
    benchmark: BenchmarkFixture, side: tuple[Forward, tuple[torch.Tensor, ...]], name: str, whole: bool
) -> None:
    benchmark.group = name
    forward, inputs = side
    output = forward()
    grad = torch.randn_like(output)

    def backward() -> object:
        return torch.autograd.grad(output, inputs, grad, retain_graph=True)

    def both() -> object:
        return torch.autograd.grad(forward(), inputs, grad)

    benchmark.pedantic(both if whole else backward, rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("whole", (False, True), ids=("backward", "forward+backward"))
@pytest.mark.parametrize(("heads", "dim"), HEADS)
@pytest.mark.parametrize("isa", ISAS)
def test_paged(benchmark: BenchmarkFixture, isa: str, heads: int, dim: int, whole: bool) -> None:
    assert MODULE is not None
    before = MODULE.isa()
    MODULE.set_isa(isa)
    run(benchmark, ours(heads, dim), f"{heads}x{dim} {'forward+' if whole else ''}backward", whole)
    MODULE.set_isa(before)


@pytest.mark.parametrize("whole", (False, True), ids=("backward", "forward+backward"))
@pytest.mark.parametrize(("heads", "dim"), HEADS)
def test_sdpa_with_a_mask(benchmark: BenchmarkFixture, heads: int, dim: int, whole: bool) -> None:
    run(benchmark, sdpa(heads, dim), f"{heads}x{dim} {'forward+' if whole else ''}backward", whole)
