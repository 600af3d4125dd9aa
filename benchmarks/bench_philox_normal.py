# SPDX-License-Identifier: Apache-2.0
"""philox_normal against torch.randn (a sequential generator, not addressable by frame).

python -m pytest benchmarks/bench_philox_normal.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.philox_normal import philox_normal


@pytest.mark.parametrize("side", ["ardiff", "torch.randn"])
@pytest.mark.parametrize("shape", [(16, 128), (256, 16384)], ids=str)
def test_normal(
    benchmark: BenchmarkFixture, shape: tuple[int, int], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = torch.arange(5 * shape[0]).reshape(-1, 5)
    native_only(monkeypatch)
    calls = {"ardiff": lambda: philox_normal(keys, shape[1]), "torch.randn": lambda: torch.randn(shape)}
    run(benchmark, f"philox_normal {shape}", calls[side])
