# SPDX-License-Identifier: Apache-2.0
"""add_noise (v target) against randn, multiply, add in PyTorch; `copy` moves the bytes of x0 and both
results.

python -m pytest benchmarks/bench_add_noise.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
import torch
from native_run import copy_of, native_only, run
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.add_noise import add_noise


@pytest.mark.parametrize("side", ["ardiff", "pytorch", "ardiff, noise given", "pytorch, noise given", "copy"])
@pytest.mark.parametrize("shape", [(16, 128), (1024, 128), (256, 16384)], ids=str)
def test_add_noise(
    benchmark: BenchmarkFixture, shape: tuple[int, int], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x0, noise = torch.randn(2, *shape)
    signal, sigma = torch.rand(2, shape[0])
    keys = torch.arange(5 * shape[0]).reshape(-1, 5)
    native_only(monkeypatch)

    def unfused(eps: torch.Tensor) -> object:
        a, s = signal[:, None], sigma[:, None]
        return a * x0 + s * eps, a * eps - s * x0

    calls = {
        "ardiff": lambda: add_noise(x0, signal, sigma, keys=keys, target="v"),
        "pytorch": lambda: unfused(torch.randn(shape)),
        "ardiff, noise given": lambda: add_noise(x0, signal, sigma, noise=noise, target="v"),
        "pytorch, noise given": lambda: unfused(noise),
        "copy": copy_of(3 * x0.numel()),
    }
    run(benchmark, f"add_noise {shape}", calls[side])
