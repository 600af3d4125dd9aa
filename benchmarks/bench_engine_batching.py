# SPDX-License-Identifier: Apache-2.0
"""Eight streams in one batch against the same streams one after the other; and what planning costs.

    python -m pytest benchmarks/bench_engine_batching.py -s --benchmark-json=batching.json
    ARDIFF_BENCH_STEPS=10 python -m pytest benchmarks/bench_engine_batching.py -s     # a quick run

test_batching: the model of bench_engine.py, 16 frames a stream, memory.Window(16). Both sides run in one
engine, the sequential side before the round of the table; their latents must be the same bits. `extra_info`
holds the gain and the cells per tick of both sides. `budget`: the engine's max_batch_tokens. One stream at
lag 0 already feeds 512 tokens, so that more at a time gain nothing, and may cost the caches.

test_planning: a model of the bundled model's size in the steady state of eight endless streams.
`planning_share` is the engine's own count (stats().planning_seconds: plan, pages, packing).
`share_outside_the_model`, from forward hooks, bounds it from above: it adds the solver and the handing out.
`profiled_shares` are the engine's ranges in torch.profiler, in ticks of their own, as it slows every op down.
"""

from __future__ import annotations

import time

import pytest
import torch
from engine_run import STEPS, engine_for, random_model, scaled
from pytest_benchmark.fixture import BenchmarkFixture
from torch.profiler import ProfilerActivity, profile
from versus import torch_threads

from ardiff_engine.engine import PASSES, Engine, Request, Stream
from ardiff_engine.memory import Window
from ardiff_engine.models import ARDiffusionConfig

pytestmark = pytest.mark.slow  # an hour in all: `ardiff bench` runs it with --slow only

WINDOW = 16
FRAMES = 16
# Most pages of a stream: 3 of context, and 31 frames of one page (Window.max_frames).
PAGES_PER_STREAM = 34
MODEL = ARDiffusionConfig(width=384, depth=8, heads=6)
BUNDLED = ARDiffusionConfig(
    tokens_per_frame=4,
    channels=16,
    width=192,
    depth=4,
    heads=6,
    context_tokens=4,
    context_dim=64,
    num_classes=10,
)
# Lags for 50 steps.
MIXES = {
    "lag50": (50,) * 8,
    "lag5": (5,) * 8,
    "lag0": (0,) * 8,
    "mixed": (0, 5, 5, 10, 10, 25, 50, 50),
}
BUDGETS = {"unlimited": None, "budget512": 512}
PLANNED_TICKS = 2 * STEPS
ROUNDS = 2


def requests(lags: tuple[int, ...], frames: int | None) -> list[Request]:
    return [Request(num_frames=frames, lag=scaled(lag), seed=seed) for seed, lag in enumerate(lags)]


@pytest.mark.parametrize("threads", [2, 1], ids=["threads2", "threads1"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("mix", MIXES)
def test_batching(benchmark: BenchmarkFixture, mix: str, budget: str, threads: int) -> None:
    engine = engine_for(
        random_model(MODEL),
        Window(WINDOW),
        max_pages=8 * PAGES_PER_STREAM,
        max_batch_tokens=BUDGETS[budget],
    )
    jobs = requests(MIXES[mix], FRAMES)
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    alone: list[torch.Tensor] = []
    ticks: dict[str, int] = {}

    def one_after_the_other() -> None:
        before, began = engine.stats().passes, time.perf_counter()
        alone[:] = [engine.submit(job).result() for job in jobs]
        seconds["alone"].append(time.perf_counter() - began)
        ticks["alone"] = engine.stats().passes - before

    def together() -> list[torch.Tensor]:
        before, began = engine.stats().passes, time.perf_counter()
        streams = [engine.submit(job) for job in jobs]
        latents = [stream.result() for stream in streams]
        seconds["together"].append(time.perf_counter() - began)
        ticks["together"] = engine.stats().passes - before
        return latents

    benchmark.group = f"8 streams, {mix}, {budget}, {STEPS} steps, {threads} threads"
    with torch_threads(threads):
        engine.submit(Request(num_frames=1, lag=0)).result()
        before = engine.stats().cells
        batched = benchmark.pedantic(together, setup=one_after_the_other, rounds=ROUNDS)
    assert all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))
    cells = (engine.stats().cells - before) // (2 * ROUNDS)
    info = benchmark.extra_info
    info["steps"], info["lags"], info["threads"] = STEPS, [job.lag for job in jobs], threads
    info["batched_seconds"], info["sequential_seconds"] = min(seconds["together"]), min(seconds["alone"])
    info["gain"] = info["sequential_seconds"] / info["batched_seconds"]
    info["gain_of_each_round"] = [a / b for a, b in zip(seconds["alone"], seconds["together"], strict=True)]
    info["cells"] = cells
    info["cells_per_pass_sequential"] = cells / ticks["alone"]
    info["cells_per_pass_batched"] = cells / ticks["together"]
    info["cells_per_second_batched"] = cells / info["batched_seconds"]
    print("\n" + "\n".join(f"  {name}: {value}" for name, value in info.items()))


class ModelClock:
    """Seconds spent inside a model's forward, and how often it was called, through its forward hooks."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0
        self.calls = 0
        self._began = 0.0
        self._hooks = (
            model.register_forward_pre_hook(self._start),
            model.register_forward_hook(self._stop),
        )

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, module: torch.nn.Module, args: object) -> None:
        self._began = time.perf_counter()

    def _stop(self, module: torch.nn.Module, args: object, output: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.calls += 1


def run_ticks(engine: Engine, streams: list[Stream], count: int) -> None:
    end = streams[0].ticks_done + count
    while streams[0].ticks_done < end:
        engine.step(min(PASSES, end - streams[0].ticks_done))
        for stream in streams:
            stream.take_ready()


def profiled_shares(engine: Engine, streams: list[Stream]) -> dict[str, float]:
    """Share of each `ardiff.*` range in the time of the ticks; empty if the engine marks none."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        began = time.perf_counter()
        run_ticks(engine, streams, PLANNED_TICKS)
        seconds = time.perf_counter() - began
    return {
        event.key: event.cpu_time_total * 1e-6 / seconds
        for event in record.key_averages()
        if event.key.startswith("ardiff.")
    }


@pytest.mark.parametrize("threads", [2, 1], ids=["threads2", "threads1"])
@pytest.mark.parametrize("lag", [5, 50])
def test_planning(benchmark: BenchmarkFixture, lag: int, threads: int) -> None:
    model = random_model(BUNDLED)
    engine = engine_for(model, Window(WINDOW), max_pages=8 * PAGES_PER_STREAM)
    streams = [engine.submit(job) for job in requests((lag,) * 8, None)]
    with torch_threads(threads):
        # Until every window is full and slides.
        run_ticks(engine, streams, (WINDOW + 1) * max(1, scaled(lag)) + STEPS)
        clock = ModelClock(model)
        before = engine.stats()
        benchmark.group = f"planning, bundled size, 8 streams, lag {lag}, {STEPS} steps, {threads} threads"
        seconds: list[float] = []

        def some_ticks() -> None:
            began = time.perf_counter()
            run_ticks(engine, streams, PLANNED_TICKS)
            seconds.append(time.perf_counter() - began)

        benchmark.pedantic(some_ticks, rounds=5)
        after = engine.stats()
        clock.remove()
        shares = profiled_shares(engine, streams)
    assert clock.calls >= after.passes - before.passes > 0
    total = sum(seconds)
    info = benchmark.extra_info
    info["steps"], info["lag"], info["threads"] = STEPS, scaled(lag), threads
    info["cells_per_pass"] = (after.cells - before.cells) / (after.passes - before.passes)
    info["milliseconds_per_tick"] = 1e3 * total / (after.passes - before.passes)
    info["planning_share"] = (after.planning_seconds - before.planning_seconds) / total
    info["share_outside_the_model"] = 1 - clock.seconds / total
    info["profiled_shares"] = shares
    print("\n" + "\n".join(f"  {name}: {value}" for name, value in info.items()))
    for stream in streams:
        stream.cancel()
