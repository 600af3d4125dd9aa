# SPDX-License-Identifier: Apache-2.0
"""FoPP timesteps: the native urn walk against the PyTorch reference of the same walk.

python -m pytest benchmarks/bench_sample_timesteps.py --benchmark-columns=min,median
"""

from __future__ import annotations

import pytest
from native_run import native_only
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.ops.sample_timesteps import reference_sample_timesteps, sample_timesteps


@pytest.mark.parametrize("side", ["ardiff", "reference"])
@pytest.mark.parametrize("frames", [16, 81])
def test_fopp(benchmark: BenchmarkFixture, frames: int, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native_only(monkeypatch)
    benchmark.group = f"sample_timesteps 64 x {frames}"
    draw = sample_timesteps if side == "ardiff" else reference_sample_timesteps
    benchmark.pedantic(lambda: draw(64, frames, 1000, "fopp", 0, first_sample=0), rounds=3, warmup_rounds=1)
