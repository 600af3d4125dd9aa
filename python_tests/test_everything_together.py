# SPDX-License-Identifier: Apache-2.0
"""One engine, streams that have nothing in common: block sizes, tracks, frame sizes, prompts, guidance,
memories, solvers that look back and that draw noise. Each gives what it gives alone, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_wan import prompt, small_wan

import ardiff_engine as ade
from ardiff_engine.memory import Full, MemoryPolicy, PerLevel, RecomputedWindow, Window
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.plan import Rule, blocks, rolling, sets, stage_major

FLOW = ade.FlowSchedule(shift=3.0)
FOUR, TWO = (ade.solvers.Renoise(FLOW, steps) for steps in ([1000, 750, 500, 250], [1000, 400]))
UNIPC, EULER = ade.solvers.UniPC(FLOW, 4), ade.solvers.Euler(FLOW, 3)
MULTISTEP = ade.solvers.DPMSolver(FLOW, 3)


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return small_wan()


def request(
    size: tuple[int, int], plan: Rule, solver: Any, memory: MemoryPolicy, frames: int, **options: Any
) -> ade.Request:
    seed = 7 * size[0] + frames
    given = {"seed": seed, "condition": prompt(seed % 3)} | options
    return ade.Request(num_frames=frames, size=size, plan=plan, solver=solver, memory=memory, **given)


def requests() -> list[ade.Request]:
    given = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(2))
    return [
        request((4, 6), blocks(3, first=1), (FOUR, TWO), Window(6, sink=1), 7),
        request((6, 10), blocks(1, lag=1), UNIPC, Window(5), 6),
        request((4, 4), blocks(2), UNIPC, Full(), 6, guidance_scale=3.0),
        request((6, 4), blocks(1, lag=2), EULER, RecomputedWindow(4), 6, prefix=given),
        request((2, 2), rolling(4, 2), FOUR, Window(8, joint=True), 8),
        request((8, 6), sets([[0, 4], [2, 1], [3]]), TWO, Full(joint=True), 5, condition=prompt(0)),
        request((4, 6), stage_major(2), MULTISTEP, PerLevel(Full(), "next"), 6, noise_stream=3),
        request((2, 12), blocks(2), (FOUR, EULER), Window(4), 6, condition=None, guidance_scale=1.5),
    ]


def joined(engine: ade.Engine, asked: list[ade.Request], apart: int) -> list[torch.Tensor]:
    """Each one starts `apart` passes after the one before."""
    streams = []
    for each in asked:
        streams.append(engine.submit(each))
        for _ in range(apart):
            engine.step(1)
    return [stream.result() for stream in streams]


@pytest.fixture(scope="module")
def alone(model: WanTransformer) -> list[torch.Tensor]:
    return [engine_of(model).submit(each).result() for each in requests()]


def engine_of(model: WanTransformer, **options: Any) -> ade.Engine:
    return ade.Engine(model, solver=FOUR, max_pages=1000, page_rows=16, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("apart", [0, 1, 3])
def test_alone_and_together_are_the_same_bits(
    model: WanTransformer, alone: list[torch.Tensor], apart: int, padded: bool
) -> None:
    engine = engine_of(model, cuda_graphs=padded)
    together = joined(engine, requests(), apart)
    assert [torch.equal(a, b) for a, b in zip(together, alone, strict=True)] == [True] * len(alone)
    assert engine.stats().cells_per_pass > 3 and engine.stats().pages_held == 0


def test_in_turns(model: WanTransformer, alone: list[torch.Tensor]) -> None:
    """With room for a part of them in each pass, in another order of joining."""
    engine = engine_of(model, max_batch_tokens=60)
    together = joined(engine, requests()[::-1], 1)[::-1]
    assert [torch.equal(a, b) for a, b in zip(together, alone, strict=True)] == [True] * len(alone)


def test_streams_differ(alone: list[torch.Tensor]) -> None:
    """What the tests above rely on: finite, and not all alike."""
    assert all(bool(video.isfinite().all()) for video in alone)
    assert len({float(video.double().sum()) for video in alone}) == len(alone)
