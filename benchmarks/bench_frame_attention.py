# SPDX-License-Identifier: Apache-2.0
"""frame_attention against scaled_dot_product_attention (SDPA), on contiguous keys and after a gather.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_frame_attention.py --benchmark-columns=min,median

The table is grouped by shape; the ratio in brackets after each minimum is to the fastest of its group. All
sides compute the same attention in float32; SDPA gets its inputs in the layout [1, heads, tokens, dim]. A
matrix product of the same FLOPs, 1536 columns wide, stands for the GEMM rate of the machine.
`OMP_NUM_THREADS=2` measures two threads. To hold SDPA to AVX2 set ATEN_CPU_CAPABILITY=avx2 and
MKL_ENABLE_INSTRUCTIONS=AVX2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import scaled_dot_product_attention

from ardiff_engine._native import native
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

MODULE = native()
ISAS = [isa for isa in MODULE.build_info()["isas"] if isa != "scalar"] if MODULE is not None else []
ROWS = 32


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int
    dim: int
    queries: int
    keys: int
    rounds: int = 60

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.dim * self.queries * self.keys

    def __str__(self) -> str:
        return f"{self.heads}x{self.dim} q{self.queries} k{self.keys}"


SHAPES = (
    Shape(16, 72, 512, 589),
    Shape(16, 72, 32, 589),
    Shape(6, 64, 64, 1024),
    Shape(12, 128, 1560, 6240, rounds=5),
)


@pytest.fixture(params=SHAPES, ids=str)
def problem(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture
) -> tuple[Shape, FrameTable, torch.Tensor]:
    """Keys in shuffled pages of 32 rows, one group."""
    shape: Shape = request.param
    benchmark.group = str(shape)
    count = -(-shape.keys // ROWS)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    valid = [min(ROWS, shape.keys - i * ROWS) for i in range(count)]
    return shape, FrameTable.build([shape.queries], [order], [valid]), torch.tensor(order)


def run(benchmark: BenchmarkFixture, shape: Shape, call: Callable[[], object]) -> None:
    benchmark.pedantic(call, rounds=shape.rounds, warmup_rounds=2)
    benchmark.extra_info["gflops_per_second"] = shape.flops / benchmark.stats.stats.min / 1e9


@pytest.mark.parametrize("isa", ISAS)
def test_paged(
    benchmark: BenchmarkFixture, problem: tuple[Shape, FrameTable, torch.Tensor], isa: str
) -> None:
    shape, table, order = problem
    q = torch.randn(shape.queries, shape.heads, shape.dim)
    k, v = torch.randn(2, len(order), shape.heads, ROWS, shape.dim)
    assert MODULE is not None
    before = MODULE.isa()
    MODULE.set_isa(isa)
    run(benchmark, shape, lambda: frame_attention(q, k, v, table))
    MODULE.set_isa(before)


def test_sdpa_on_contiguous_keys(
    benchmark: BenchmarkFixture, problem: tuple[Shape, FrameTable, torch.Tensor]
) -> None:
    shape, _, _ = problem
    q = torch.randn(1, shape.heads, shape.queries, shape.dim)
    k, v = torch.randn(2, 1, shape.heads, shape.keys, shape.dim)
    run(benchmark, shape, lambda: scaled_dot_product_attention(q, k, v))


def test_gather_then_sdpa(
    benchmark: BenchmarkFixture, problem: tuple[Shape, FrameTable, torch.Tensor]
) -> None:
    shape, _, order = problem
    q = torch.randn(1, shape.heads, shape.queries, shape.dim)
    k, v = torch.randn(2, len(order), shape.heads, ROWS, shape.dim)

    def gather(pool: torch.Tensor) -> torch.Tensor:
        return pool[order].transpose(0, 1).flatten(1, 2)[None, :, : shape.keys]

    run(benchmark, shape, lambda: scaled_dot_product_attention(q, gather(k), gather(v)))


def test_gemm_of_as_many_flops(
    benchmark: BenchmarkFixture, problem: tuple[Shape, FrameTable, torch.Tensor]
) -> None:
    shape, _, _ = problem
    side = 1536
    rows = max(1, round(shape.flops / (2 * side * side)))
    a, b = torch.randn(rows, side), torch.randn(side, side)
    run(benchmark, shape, lambda: a @ b)
