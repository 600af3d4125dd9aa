# SPDX-License-Identifier: Apache-2.0
"""norm_rope_write_ (LayerNorm, RoPE, page write) against the same in PyTorch.
Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.ops.norm_rope import reference_norm_rope
from ardiff_engine.ops.norm_rope_write import norm_rope_write_

ROWS = 32


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(
    ("shape", "beyond_cache"),
    [((512, 16, 72), False), ((8192, 16, 72), True), ((6240, 12, 128), True)],
    ids=str,
)
def test_write(
    benchmark: BenchmarkFixture, shape: tuple[int, int, int], beyond_cache: bool, threads: int
) -> None:
    tokens, heads, dim = shape
    qkv, weight = torch.randn(tokens, 3 * heads * dim), torch.randn(dim)
    k_pages, v_pages = torch.zeros(2, tokens // ROWS, heads, ROWS, dim)
    slots = positions = torch.arange(tokens)
    options = {
        "heads": heads, "norm": "layer", "q_weight": weight, "k_weight": weight,
        "frequencies": 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim),
    }  # fmt: skip

    def unfused() -> object:
        q, k, v = reference_norm_rope(qkv, positions, **options)
        k_pages[slots // ROWS, :, slots % ROWS] = k
        v_pages[slots // ROWS, :, slots % ROWS] = v
        return q

    row = Row(
        op="norm_rope_write_",
        shape=f"{tokens} x {heads} x {dim}",
        threads=threads,
        opponent="the formula in PyTorch, index writes",
        bar=2.0 if beyond_cache else None,
        moved_bytes=2 * 4 * qkv.numel(),
        share_bar=0.8 if beyond_cache else None,
    )
    versus(
        benchmark, row, lambda: norm_rope_write_(qkv, k_pages, v_pages, slots, positions, **options), unfused
    )
