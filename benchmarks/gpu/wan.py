# SPDX-License-Identifier: Apache-2.0
"""Blocks of three frames of a model of Wan 1.3B's shape in 4 steps, of one stream and of eight.

    python benchmarks/gpu/wan.py --variant graphs      # or eager

Windows of 12 and 18 frames, bfloat16, random weights, 512 rows of text. One stream has latents 60 x 104
(480 x 832 pixels, 1560 tokens a frame). Eight streams have 30 x 52, beside eight times one of them: what a
batch saves. Not yet run on a GPU.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lines import options_of, put

from ardiff_engine import FlowSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.memory.page_pool import choose_page_rows
from ardiff_engine.models import WanConfig, WanTransformer
from ardiff_engine.plan import blocks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench_wan import BLOCK, STEPS, random_wan

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    size: tuple[int, int]
    window: int
    streams: int


SHAPES = (
    Shape((60, 104), 12, 1),
    Shape((60, 104), 18, 1),
    Shape((30, 52), 18, 1),
    Shape((30, 52), 18, 8),
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """seconds: of one block of every stream, the median of ROUNDS once the window is full.

    first_seconds: from submission to the first frames. replayed: share of the timed passes that repeated a
    graph; reason: why the others did not.
    """

    shape: Shape
    seconds: float
    seconds_per_frame: float
    first_seconds: float
    replayed: float
    reason: str | None


def run(model: WanTransformer, shape: Shape, cuda_graphs: bool) -> Blocks:
    tokens = model.spec.tokens(shape.size)
    pages = 3 * shape.window * -(-tokens // choose_page_rows(tokens))
    engine = Engine(
        model,
        solver=solvers.Euler(FlowSchedule(shift=5.0), STEPS),
        memory=Window(shape.window),
        plan=blocks(BLOCK),
        max_pages=pages * shape.streams,
        cuda_graphs=cuda_graphs,
    )
    text = torch.randn(model.config.text_tokens, model.config.text_dim)
    request = Request(num_frames=None, size=shape.size, condition=text)
    streams = [engine.submit(request) for _ in range(shape.streams)]

    def block() -> None:
        while any(stream.frames_ready < BLOCK for stream in streams):
            engine.step()
        for stream in streams:
            stream.take_ready()

    first = timed(model.device, block)
    for _ in range(shape.window // BLOCK):
        block()
    before = engine.stats()
    seconds = statistics.median(timed(model.device, block) for _ in range(ROUNDS))
    after = engine.stats()
    return Blocks(
        shape,
        seconds,
        seconds / (BLOCK * shape.streams),
        first,
        (after.graph_replays - before.graph_replays) / (after.passes - before.passes),
        after.eager_reason,
    )


def timed(device: torch.device, call: Callable[[], object]) -> float:
    """Until the device is done."""
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    options = options_of(__doc__.splitlines()[0], ("graphs", "eager"))
    model = random_wan(WanConfig()).to("cuda", torch.bfloat16)
    alone: dict[tuple[tuple[int, int], int], float] = {}
    for shape in SHAPES:
        found = run(model, shape, options.variant == "graphs")
        alone.setdefault((shape.size, shape.window), found.seconds)
        times_one = found.seconds / alone[shape.size, shape.window]
        put({**asdict(found), "times_one_stream": times_one}, options.json)


if __name__ == "__main__":
    main()
