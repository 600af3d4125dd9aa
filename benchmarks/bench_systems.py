# SPDX-License-Identifier: Apache-2.0
"""A pipeline of steps against the same steps one after the other, on one device.

    python -m pytest benchmarks/bench_systems.py --benchmark-only -q

HiAR: 21 frames in blocks of three, all blocks at a step before the next step, against one diagonal of blocks
per pass. StreamDiffusionV2: 16 frames in three steps, all steps of its pipeline in one pass, against a frame
at a time over the same rings of K/V. Both sides compute the same cells, to the bit; `extra_info` holds the
passes and the cells per pass of both. A small causal Wan with 16 tokens a frame.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine import systems
from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.engine import Engine, Request
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.plan import blocks
from ardiff_engine.systems import System

SIZE = (8, 8)
CONFIG = WanConfig(192, 4, 6, 768, channels=16, out_channels=16, text_dim=64, text_tokens=16)

STREAM = systems.get("streamdiffusion-v2")
STREAM = replace(STREAM, solver=replace(STREAM.solver, steps=(700, 600, 500)))
assert isinstance(STREAM.solver, Renoise)
CASES: dict[str, tuple[int, System, System]] = {
    "HiAR": (21, systems.get("hiar-pipelined"), systems.get("hiar")),
    "StreamDiffusionV2": (16, STREAM, replace(STREAM, plan=blocks(1, first=2))),
}


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", CASES)
def test_pipelined(benchmark: BenchmarkFixture, name: str, threads: int) -> None:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    frames, pipelined, sequential = CASES[name]
    engine = Engine(model, solver=pipelined.solver, max_pages=2000)
    text = torch.randn(8, CONFIG.text_dim)
    counts: dict[str, tuple[int, float]] = {}

    def run(system: System, side: str) -> torch.Tensor:
        before = engine.stats()
        asked = Request(num_frames=frames, size=SIZE, condition=text, seed=1)
        video = engine.submit(system.request(asked)).result()
        spent = engine.stats().since(before)
        counts[side] = spent.passes, spent.cells / spent.passes
        return video

    assert torch.equal(run(pipelined, "pipelined"), run(sequential, "sequential"))
    row = Row("pipeline of steps", f"{name}, {frames} frames", threads, "one after the other")
    versus(benchmark, row, lambda: run(pipelined, "pipelined"), lambda: run(sequential, "sequential"))
    benchmark.extra_info["passes and cells per pass"] = counts
    benchmark.extra_info["milliseconds per frame"] = 1e3 * benchmark.extra_info["seconds"] / frames
