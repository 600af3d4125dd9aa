# SPDX-License-Identifier: Apache-2.0
"""norm_rope_write_ (LayerNorm, RoPE, page write) against the same in PyTorch; `copy` moves the same bytes.

python -m pytest benchmarks/bench_norm_rope_write.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import copy_of, native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.norm_rope import norm_rope
from ardiff_engine.ops.norm_rope_write import norm_rope_write_

ROWS = 32


@pytest.mark.parametrize("side", ["ardiff", "pytorch", "copy"])
@pytest.mark.parametrize("shape", [(32, 16, 72), (512, 16, 72), (1560, 12, 128)], ids=str)
def test_write(
    benchmark: BenchmarkFixture, shape: tuple[int, int, int], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, heads, dim = shape
    qkv, weight = torch.randn(tokens, 3 * heads * dim), torch.randn(dim)
    k_pages, v_pages = torch.zeros(2, -(-tokens // ROWS), heads, ROWS, dim)
    slots = positions = torch.arange(tokens)
    options = {
        "heads": heads, "norm": "layer", "q_weight": weight, "k_weight": weight,
        "frequencies": 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim),
    }  # fmt: skip
    native_only(monkeypatch)

    def unfused() -> object:
        q, k, v = norm_rope(qkv, positions, **options)
        k_pages[slots // ROWS, :, slots % ROWS] = k
        v_pages[slots // ROWS, :, slots % ROWS] = v
        return q

    calls = {
        "ardiff": lambda: norm_rope_write_(qkv, k_pages, v_pages, slots, positions, **options),
        "pytorch": unfused,
        "copy": copy_of(2 * qkv.numel()),
    }
    run(benchmark, f"norm_rope_write_ {shape}", calls[side])
