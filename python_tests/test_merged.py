# SPDX-License-Identifier: Apache-2.0
"""Frames that are made of others: pages on the engine, and the plain algorithm that keeps keys without their
rotation."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.raw_keys import RawWan
from helpers.small_wan import prompt, small_wan

from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import Full, Merged, PerLevel, Pooling, Window

SOLVER = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=3)
LEVELS = Merged(PerLevel(Window(5, sink=1), "same"), slots=2, taps=3)
CLEAN = Merged(Window(4, sink=2), slots=1, taps=5)
COUNTED = replace(CLEAN, counted=True)
FIRST, BLOCK, FRAMES = 2, 3, 17
BLOCKS = plan.blocks(BLOCK, first=FIRST)


class Plain:
    """Slots as lists of K and V, of each layer: no pages, no rotation, one list for each level."""

    def __init__(self, network: RawWan, memory: Merged, layers: int) -> None:
        self.network, self.memory, self.layers = network, memory, layers
        self.by_level = isinstance(memory.memory, PerLevel)
        self.window = memory.memory.memory if self.by_level else memory.memory
        self.slots: dict[int, list[tuple[list[torch.Tensor], list[torch.Tensor], int]]] = {}

    def pooled(self, parts: list[torch.Tensor], weights: torch.Tensor | None, layer: int) -> torch.Tensor:
        """parts: [1, tokens, heads, head_dim] of frames; neighbouring tokens become one."""
        groups = torch.cat(parts, 1).unflatten(1, (-1, len(parts)))
        if weights is None:
            return groups.mean(2)
        return (groups * weights[min(layer, len(weights) - 1), : len(parts)].double()).sum(2)

    def before(self, level: int, block: int) -> list[int]:
        """Merges what is too much, and returns stand-ins for slots: negative frames of the network."""
        held = self.slots.get(level, [])
        first, recent = self.window.sink, self.window.size - block
        last = max(first, len(held) - recent)
        old, merged = held[first:last], []
        pooling = self.memory.pooling
        while len(merged) + len(old) > self.memory.slots:
            group, old = old[: self.memory.taps], old[self.memory.taps :]
            both = [
                [self.pooled([own[part][n] for own in group], weights, n) for n in range(self.layers)]
                for part, weights in enumerate((pooling.k_weights, pooling.v_weights))
            ]
            merged.append((*both, sum(own[2] for own in group)))
        self.slots[level] = [*held[:first], *merged, *old, *held[last:]]
        names = []
        for number, (keys, values, _) in enumerate(self.slots[level]):
            names.append(-1 - number)
            for n in range(self.layers):
                self.network.held[n, -1 - number] = keys[n], values[n]
        return names

    def video(self, noise: torch.Tensor, solver: solvers.DDIM) -> torch.Tensor:
        x = noise.double().clone()
        for start, stop in pairwise([0, *range(FIRST, FRAMES + 1, BLOCK)]):
            own = list(range(start, stop))
            levels = [*range(solver.num_steps), *([] if self.by_level else [solver.num_steps])]
            for level in levels:
                number = level if self.by_level else 0
                if self.by_level or level == 0:
                    seen = [*self.before(number, len(own)), *own]
                out = self.network.call(x[own], float(solver.timesteps[level]), own, seen, range(len(seen)))
                if level == levels[-1] or self.by_level:
                    kept = [
                        [[self.network.held[n, frame][part] for n in range(self.layers)] for part in (0, 1)]
                        for frame in own
                    ]
                    self.slots.setdefault(number, []).extend([(k, v, 1) for k, v in kept])
                if level < solver.num_steps:
                    p, q, a, b = solver.coefficients[level, :4]
                    x[own] = a * x[own] + b * (p * x[own] + q * out)
        return x


def weights(model, seed: int) -> Pooling:
    spec, generator = model.spec, torch.Generator().manual_seed(seed)
    shape = (spec.layers, 5, spec.kv_heads, spec.head_dim)
    return Pooling(*(torch.rand(shape, generator=generator) for _ in range(2)))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("weighed", [False, True], ids=["mean", "weights"])
@pytest.mark.parametrize("memory", [LEVELS, CLEAN], ids=["levels", "clean"])
def test_merged_pages_are_the_plain_algorithm(memory: Merged, weighed: bool) -> None:
    model, noise = small_wan(), torch.randn(FRAMES, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    if weighed:
        memory = replace(memory, pooling=weights(model, 2))
    want = Plain(RawWan(model, prompt(1)), memory, model.spec.layers).video(noise, SOLVER)
    engine = Engine(model, solver=SOLVER, memory=memory, max_pages=900)
    request = Request(FRAMES, plan=BLOCKS, latents=noise, condition=prompt(1), size=(4, 6))
    got = engine.submit(request).result()
    assert relative(got, want) < 2e-5
    window = Engine(model, solver=SOLVER, memory=memory.memory, max_pages=900).submit(request).result()
    assert relative(got, window) > 1e-3
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0


def test_a_merged_place_counts_its_frames() -> None:
    feeder = Feeder(BLOCKS.plan(FRAMES, (3,), 0), COUNTED, small_wan().spec)
    while not feeder.done:
        feed = feeder.next()
        feeder.advance(feed)
    view = feed.roster.views[-1]
    # The sink, all but the last frame before the block in one place, that frame, and the block.
    assert [(run.first, run.stop, run.first + run.shift) for run in view] == [
        (0, 1, 0), (1, 2, 1), (12, 13, 2), (13, 14, 3), (14, 17, 4),
    ]  # fmt: skip
    assert [round(math.exp(run.bias)) for run in view] == [1, 1, 11, 1, 1]


def test_alone_and_together_in_other_company_are_the_same_bits() -> None:
    """Suspended and forked on the way, with guidance: merged pages go where the others go."""
    model = small_wan()
    requests = [
        Request(FRAMES, plan=BLOCKS, memory=LEVELS, seed=1, condition=prompt(1), size=(4, 6)),
        Request(FRAMES, plan=BLOCKS, memory=COUNTED, seed=2, condition=prompt(2), size=(4, 8)),
        Request(FRAMES, plan=BLOCKS, memory=Window(5, sink=1), seed=3, condition=prompt(3), size=(4, 6)),
        Request(
            FRAMES,
            plan=BLOCKS,
            memory=LEVELS,
            seed=4,
            condition=prompt(4),
            negative_condition=prompt(5),
            guidance_scale=2.0,
            size=(4, 6),
        ),
    ]
    alone = [Engine(model, solver=SOLVER, max_pages=900).submit(own).result() for own in requests]
    engine = Engine(model, solver=SOLVER, max_pages=4000)
    streams = [engine.submit(own) for own in requests]
    forks = []
    for passes in range(60):
        if passes % 7 == 3:
            streams[passes % 4].suspend()
            streams[passes % 4].resume()
        if passes in (10, 13):
            forks.append((passes % 4, streams[passes % 4].fork()))
        if not engine.step():
            break
    while engine.step():
        pass
    for own, expected in [*enumerate(alone), *[(number, alone[number]) for number, _ in forks]]:
        assert torch.equal(streams[own].result(), expected)
    for number, fork in forks:
        assert torch.equal(fork.result(), alone[number])
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0


def test_an_endless_stream_keeps_as_many_pages() -> None:
    model = small_wan()
    engine = Engine(model, solver=SOLVER, memory=LEVELS, max_pages=900)
    stream = engine.submit(Request(None, plan=BLOCKS, seed=1, condition=prompt(1), size=(4, 6)))
    held = []
    for _ in range(45):
        engine.step()
        held.append(engine.stats().pages_held)
    assert max(held[30:]) == max(held[20:30])
    stream.cancel()


@pytest.mark.parametrize(
    ("memory", "change", "noun"),
    [
        (LEVELS, {"grid_angles": None}, "grid_angles"),
        (LEVELS, {"forgets": False}, "forget"),
        (replace(LEVELS, slots=1), {}, "slots"),
        (replace(LEVELS, memory=Window(2, sink=1)), {}, "size"),
    ],
)
def test_what_cannot_be_merged(memory: Merged, change: dict, noun: str) -> None:
    spec = replace(small_wan().spec, **change)
    with pytest.raises((ConfigError, PlanError), match=noun):
        memory.check(BLOCKS.plan(FRAMES, (3,), 0), spec)


def test_no_merging_of_given_frames_or_of_blocks_that_move_together() -> None:
    model = small_wan()
    with pytest.raises(ConfigError, match="given"):
        LEVELS.check(BLOCKS.plan(FRAMES, (3,), 2), model.spec)
    engine = Engine(model, solver=SOLVER, max_pages=900)
    rolling = plan.stage_major(BLOCK, pipelined=True)
    with pytest.raises(ConfigError, match="after the other"):
        engine.submit(Request(18, plan=rolling, memory=LEVELS, condition=prompt(1), size=(4, 6)))
    with pytest.raises(ConfigError, match="Window"):
        Merged(Full(), 2, 3)
