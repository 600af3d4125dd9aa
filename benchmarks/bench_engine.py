# SPDX-License-Identifier: Apache-2.0
"""One video through the engine against the official sampler (official_sampler.py), with the same weights.

    python -m pytest benchmarks/bench_engine.py -s --benchmark-json=engine.json
    python -m pytest benchmarks/bench_engine.py -s -k "threads2 and rope"     # names: see CASES
    ARDIFF_BENCH_STEPS=10 python -m pytest benchmarks/bench_engine.py -s      # a quick run

Width 384, depth 8, 6 heads, 32 tokens a frame, window 16, 77 context tokens, S = 50, `temporal_causal`,
random weights. The table times the engine, its construction included. The baseline is timed between the
engine's rounds, so that both meet the same machine. `extra_info` (printed with -s, kept with
--benchmark-json) holds both times and their ratio.

16 frames: whole videos on both sides, whose latents must agree. 128 frames: the engine makes the whole video,
the baseline SLICE iterations in the middle, times the number of iterations: each of them feeds the same
shapes. There is no lag 0 for 128 frames: in a window of 16 the official schedule drops frames unfinished.

`recomputed` is the official window, the same video as the baseline's. `rolling` keeps K/V from when they were
computed: exact for another plain algorithm (memory.Window), so that its ratio compares the work, not one
result.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import pytest
import torch
from engine_run import STEPS, engine_for, random_model, scaled
from official_sampler import OfficialNetwork, OfficialSampler
from pytest_benchmark.fixture import BenchmarkFixture
from versus import torch_threads

from ardiff_engine.engine import Engine, EngineStats, Request
from ardiff_engine.memory import MemoryPolicy, RecomputedWindow, Window
from ardiff_engine.models import ARDiffusionConfig

pytestmark = pytest.mark.slow  # an hour in all: `ardiff bench` runs it with --slow only

WINDOW = 16
SLICE = 40
PAGES = 64
AGREES = 1e-5

MODELS = {
    "rope": ARDiffusionConfig(width=384, depth=8, heads=6),
    "official": ARDiffusionConfig(width=384, depth=8, heads=6, merge="share_norm", positions="absolute"),
}
POLICIES: dict[str, MemoryPolicy] = {"recomputed": RecomputedWindow(WINDOW), "rolling": Window(WINDOW)}


@dataclass(frozen=True, slots=True)
class Case:
    """lag: for 50 steps."""

    model: str
    frames: int
    lag: int
    memory: str

    def __str__(self) -> str:
        return f"{self.model}-{self.frames}frames-lag{self.lag}-{self.memory}"

    @property
    def rounds(self) -> int:
        """One where a round takes minutes; their length then makes up for their number."""
        return 3 if self.frames == WINDOW and self.lag < 50 else 1

    @property
    def same_video(self) -> bool:
        return self.frames == WINDOW and self.memory == "recomputed"


CASES = [
    *(Case(model, WINDOW, lag, "recomputed") for model in MODELS for lag in (0, 5, 50)),
    *(Case(model, 128, lag, "recomputed") for model in MODELS for lag in (5, 50)),
    *(Case("rope", 128, lag, "rolling") for lag in (5, 50)),
]


class Baseline:
    """The official sampler on one video: `run()` adds one timing of it, whole or sliced."""

    def __init__(
        self, sampler: OfficialSampler, noise: torch.Tensor, context: torch.Tensor, lag: int
    ) -> None:
        self.sampler, self.noise, self.context, self.lag = sampler, noise, context, lag
        self.iterations = sampler.iterations(len(noise), lag)
        whole = len(noise) == sampler.window
        self.timed = self.iterations if whole else min(SLICE, self.iterations)
        self.start = (self.iterations - self.timed) // 2
        self.seconds: list[float] = []
        self.latents = noise

    def run(self) -> None:
        ticks = self.sampler.ticks(
            self.noise, self.context, self.lag, start=self.start, stop=self.start + self.timed
        )
        began = time.perf_counter()
        for latents in ticks:
            self.latents = latents
        self.seconds.append((time.perf_counter() - began) * self.iterations / self.timed)


def warm_up(baseline: Baseline, engine: Engine, request: Request) -> None:
    """First calls create threads and fill caches of the libraries."""
    for _ in baseline.sampler.ticks(baseline.noise, baseline.context, baseline.lag, stop=2):
        pass
    stream = engine.submit(request)
    engine.step()
    engine.step()
    stream.cancel()


@pytest.mark.parametrize("threads", [2, 1], ids=["threads2", "threads1"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_video(benchmark: BenchmarkFixture, case: Case, threads: int) -> None:
    model = random_model(MODELS[case.model])
    config, lag = model.config, scaled(case.lag)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(case.frames, config.tokens_per_frame, config.channels, generator=generator)
    context = 0.1 * torch.randn(config.context_tokens, config.context_dim, generator=generator)
    network = OfficialNetwork.sharing(config, model.state_dict())
    baseline = Baseline(OfficialSampler(network, STEPS), noise, context, lag)
    request = Request(num_frames=case.frames, lag=lag, condition=context, latents=noise)
    stats: list[EngineStats] = []
    ours: list[float] = []

    def video() -> torch.Tensor:
        began = time.perf_counter()
        engine = engine_for(model, POLICIES[case.memory], max_pages=PAGES)
        latents = engine.submit(request).result()
        ours.append(time.perf_counter() - began)
        stats.append(engine.stats())
        return latents

    benchmark.group = f"{case}, {STEPS} steps, {threads} threads"
    with torch_threads(threads):
        warm_up(baseline, engine_for(model, POLICIES[case.memory], max_pages=PAGES), request)
        latents = benchmark.pedantic(video, setup=baseline.run, rounds=case.rounds)
    info = benchmark.extra_info
    info["steps"], info["lag"], info["threads"] = STEPS, lag, threads
    info["engine_seconds"], info["baseline_seconds"] = min(ours), min(baseline.seconds)
    info["ratio"] = min(baseline.seconds) / min(ours)
    info["ratio_of_each_round"] = [b / a for a, b in zip(ours, baseline.seconds, strict=True)]
    info["ratio_median"] = statistics.median(info["ratio_of_each_round"])
    info["passes"], info["cells"] = stats[-1].passes, stats[-1].cells
    info["cells_per_pass"] = stats[-1].cells / stats[-1].passes
    info["baseline_iterations"], info["baseline_iterations_timed"] = baseline.iterations, baseline.timed
    info["baseline_cells"] = WINDOW * baseline.iterations
    if case.same_video:
        error = float((latents - baseline.latents).norm() / baseline.latents.norm())
        info["relative_difference"] = error
        assert error < AGREES
    print("\n" + "\n".join(f"  {name}: {value}" for name, value in info.items()))
