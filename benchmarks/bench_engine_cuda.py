# SPDX-License-Identifier: Apache-2.0
"""A tick of one frame on a GPU against reading the weights once, which no tick can do without.

    python -m pytest benchmarks/bench_engine_cuda.py -s
    python benchmarks/gpu/engine.py                         # the same as one line of JSON, for the record

The AR-Diffusion transformer of the paper (672 M parameters: width 1152, depth 28, 16 heads, 32 tokens a
frame, 77 context tokens) in bfloat16 with random weights; one endless stream whose frames are denoised one
after the other, in a rolling window of 16, so that a tick is one cell: 32 query rows, at which every linear
layer is a read of its weights. The modulation of all timesteps is computed beforehand, so its weights are no
part of a tick and are not counted.

Floor: the bytes of all weights that a tick reads, at the rate at which this GPU reads memory (a sum over as
many bytes). 0.9 GB: 0.27 ms at 3.35 TB/s (H100 SXM). Expected: 28 x 14 kernels of 1 to 3 us besides the
reads, so 1.3 to 1.6 times the floor with CUDA graphs, and 10 times without, since Python needs some 10 us to
start a kernel. Not yet run on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import pytest
import torch
from engine_run import random_model
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import PASSES, Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

PAPER = ARDiffusionConfig()
STEPS, WINDOW = 50, 16
TIMES_THE_FLOOR = 1.5
WARM_UP, TICKS, ROUNDS = WINDOW * STEPS + 100, 100, 9


@dataclass(frozen=True, slots=True)
class OneCellTicks:
    """seconds: of a tick, median of ROUNDS. floor_seconds: reading the weights of a tick, in turns with it.
    host_seconds: per tick, until the GPU is done.

    replayed: share of the timed ticks that repeated a graph; reason: why the others did not.
    """

    parameters: int
    weight_bytes: int
    cuda_graphs: bool
    seconds: float
    floor_seconds: float
    times_the_floor: float
    host_seconds: float
    replayed: float
    reason: str | None


def read_in_a_tick(model: ARDiffusionTransformer) -> int:
    """Bytes of the weights that a pass over frames reads: all but those behind the modulation table, and the
    context's."""
    before = ("adaLN_modulation", "t_embedder", "c_embedder", "context_embedding")
    return sum(p.nbytes for name, p in model.named_parameters() if not any(part in name for part in before))


def one_cell_ticks(config: ARDiffusionConfig = PAPER, *, cuda_graphs: bool = True) -> OneCellTicks:
    model = random_model(config).to("cuda", torch.bfloat16)
    schedule = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
    engine = Engine(
        model,
        solver=solvers.DDIM(schedule, num_inference_steps=STEPS),
        memory=Window(WINDOW),
        max_pages=4 * WINDOW,
        cuda_graphs=cuda_graphs,
    )
    stream = engine.submit(Request(num_frames=None, lag=STEPS, max_ahead=10**9))
    weights = torch.randn(read_in_a_tick(model) // 4, device="cuda")

    def ticks() -> None:
        end = stream.ticks_done + TICKS
        while stream.ticks_done < end:
            engine.step(min(PASSES, end - stream.ticks_done))
        stream.take_ready()

    for _ in range(WARM_UP // TICKS):
        ticks()
    before = engine.stats()
    seconds, floors, host = [], [], []
    for _ in range(ROUNDS):
        floors.append(_on_gpu(lambda: torch.sum(weights)))
        began = time.perf_counter()
        seconds.append(_on_gpu(ticks) / TICKS)
        host.append((time.perf_counter() - began) / TICKS)
    after = engine.stats()
    tick, floor = statistics.median(seconds), statistics.median(floors)
    return OneCellTicks(
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=read_in_a_tick(model),
        cuda_graphs=cuda_graphs,
        seconds=tick,
        floor_seconds=floor,
        times_the_floor=tick / floor,
        host_seconds=statistics.median(host),
        replayed=(after.graph_replays - before.graph_replays) / (after.passes - before.passes),
        reason=after.eager_reason,
    )


def _on_gpu(call: Callable[[], object]) -> float:
    """Seconds between two events on the stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


@pytest.mark.parametrize("cuda_graphs", [True, False], ids=["graphs", "eager"])
def test_one_cell_per_tick(benchmark: BenchmarkFixture, cuda_graphs: bool) -> None:
    found = benchmark.pedantic(lambda: one_cell_ticks(cuda_graphs=cuda_graphs), rounds=1)
    benchmark.extra_info.update(
        op="engine tick" if cuda_graphs else "engine tick without graphs",
        shape="1 cell, 672 M, bfloat16",
        threads=1,
        opponent="reading the weights once",
        seconds=found.seconds,
        opponent_seconds=found.floor_seconds,
        ratio=1 / found.times_the_floor,
        bar=1 / TIMES_THE_FLOOR if cuda_graphs else None,
        **{f"tick_{name}": value for name, value in asdict(found).items()},
    )
