# SPDX-License-Identifier: Apache-2.0
"""frame_attention against scaled_dot_product_attention (SDPA): on keys that are contiguous already, and after
a gather of the pages. Convention: benchmarks/README.md.

Keys in shuffled pages of 32 rows, one group. SDPA gets its inputs in the layout [1, heads, tokens, dim]. To
hold SDPA to AVX2 set ATEN_CPU_CAPABILITY=avx2 and MKL_ENABLE_INSTRUCTIONS=AVX2, and ARDIFF_ISA=avx2 for ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import scaled_dot_product_attention
from versus import THREADS, Row, versus

from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

ROWS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int
    dim: int
    queries: int
    keys: int
    share_bar: float | None = None

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.dim * self.queries * self.keys

    def __str__(self) -> str:
        return f"{self.heads} x {self.dim}, {self.queries} queries, {self.keys} keys"


SHAPES = (
    Shape(16, 72, 512, 589),
    Shape(16, 72, 32, 589),
    Shape(6, 64, 64, 1024),
    Shape(12, 128, 1560, 6240, share_bar=0.85),
)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gathered", [False, True], ids=["contiguous", "gathered"])
def test_forward(benchmark: BenchmarkFixture, shape: Shape, gathered: bool, threads: int) -> None:
    count = -(-shape.keys // ROWS)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    valid = [min(ROWS, shape.keys - i * ROWS) for i in range(count)]
    table = FrameTable.build([shape.queries], [order.tolist()], [valid])
    q = torch.randn(shape.queries, shape.heads, shape.dim)
    k, v = torch.randn(2, count, shape.heads, ROWS, shape.dim)
    queries = q.transpose(0, 1).contiguous()[None]

    def gather(pool: torch.Tensor) -> torch.Tensor:
        return pool[order].transpose(0, 1).flatten(1, 2)[None, :, : shape.keys]

    keys, values = gather(k).contiguous(), gather(v).contiguous()

    def sdpa() -> torch.Tensor:
        return scaled_dot_product_attention(queries, keys, values)

    def gather_and_sdpa() -> torch.Tensor:
        return scaled_dot_product_attention(queries, gather(k), gather(v))

    row = Row(
        op="frame_attention",
        shape=str(shape),
        threads=threads,
        opponent="gather, SDPA" if gathered else "SDPA, contiguous keys",
        bar=1.3 if gathered else 1.15,
        share_bar=shape.share_bar,
        flops=shape.flops,
    )
    versus(benchmark, row, lambda: frame_attention(q, k, v, table), gather_and_sdpa if gathered else sdpa)
