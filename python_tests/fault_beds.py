# SPDX-License-Identifier: Apache-2.0
"""What the fault matrix strikes at: eight streams of one engine, which have little in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from dense_oracle import randomise
from helpers.small_wan import prompt, small_wan

from ardiff_engine import FlowSchedule, systems
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.memory import RecomputedWindow, Window
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.models.wan import WanTransformer

STREAMS = 8
LAYERS = 2
"""Of both networks."""


@dataclass(frozen=True, slots=True)
class Bed:
    """engine: with so many pages; requests: of a seed, STREAMS of them; after: one that follows them.

    commits: the streams that store clean frames again, and by which of their ticks the first of these comes.
    unseen: passes at most that run before anybody counts them.
    """

    engine: Callable[[int], Engine]
    requests: Callable[[int], list[Request]]
    after: Request
    commits: dict[int, int]
    unseen: int = 0

    def submitted(self, engine: Engine, seed: int, **options: Any) -> list[Stream]:
        return [engine.submit(replace(request, **options)) for request in self.requests(seed)]


# --- AR-Diffusion: other lengths, lags, conditions, guidance, windows and solvers


@cache
def _ar_diffusion() -> ARDiffusionTransformer:
    sizes = {"num_frames": 4, "tokens_per_frame": 3, "width": 16, "depth": LAYERS, "heads": 2}
    made = ARDiffusionTransformer(
        ARDiffusionConfig(
            **sizes, context_tokens=2, context_dim=4, mask="temporal_causal", merge="separate_norm"
        )
    )
    randomise(made)
    return made.eval()


@cache
def _ddim(steps: int, eta: float) -> solvers.DDIM:
    schedule = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
    return solvers.DDIM(schedule, num_inference_steps=steps, eta=eta)


def _lags_engine(pages: int) -> Engine:
    memory = RecomputedWindow(3)
    return Engine(_ar_diffusion(), solver=_ddim(3, 0.0), memory=memory, max_pages=pages)


def _lags(seed: int) -> list[Request]:
    prefix = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(seed))
    kinds = [
        Request(num_frames=3, lag=0, prefix=prefix),
        Request(num_frames=4, lag=1),
        Request(num_frames=4, lag=2, guidance_scale=2.0),
        Request(num_frames=3, lag=3),
        Request(num_frames=4, lag=2, memory=Window(2)),
        Request(num_frames=4, lag=1, solver=_ddim(2, 0.7)),
        Request(num_frames=3, lag=2, condition=torch.ones(2, 4)),
        Request(num_frames=4, lag=2, memory=Window(2, sink=1), solver=_ddim(4, 0.0)),
    ]
    return [replace(kind, seed=STREAMS * seed + number) for number, kind in enumerate(kinds)]


# --- systems: blocks with clean passes; copies for each level; keys that move; whole clips, with UniPC


@cache
def _wan() -> WanTransformer:
    return small_wan()


def _systems_engine(pages: int) -> Engine:
    return Engine(_wan(), solver=solvers.Euler(FlowSchedule(5.0), 2), max_pages=pages)


LENGTHS = [
    (systems.get("self-forcing"), 9),
    (systems.get("hiar-pipelined"), 9),
    (systems.get("rolling-forcing"), 12),
    (replace(systems.get("wan"), solver=solvers.UniPC(FlowSchedule(5.0), 6)), 5),
]


def _systems(seed: int) -> list[Request]:
    """Two videos of each of four systems, one of them guided."""
    made = []
    for system, frames in LENGTHS:
        for guidance in (1.0, 2.0):
            number = len(made)
            request = Request(
                num_frames=frames,
                size=(2, 4),
                condition=prompt(number),
                negative_condition=prompt(9),
                seed=STREAMS * seed + number,
            )
            made.append(replace(system.request(request), guidance_scale=guidance))
    return made


BEDS = {
    "lags": Bed(
        _lags_engine,
        _lags,
        Request(num_frames=2, lag=1, seed=2**40),
        # The prefix of the first is stored at once, the others' after some frames.
        {0: 0} | dict.fromkeys(range(1, STREAMS), 2),
    ),
    "systems": Bed(
        _systems_engine,
        _systems,
        Request(num_frames=2, size=(2, 4), seed=2**40),
        {0: 4, 1: 4, 2: 1, 3: 1, 4: 5, 5: 5},
        unseen=3,
    ),
}
