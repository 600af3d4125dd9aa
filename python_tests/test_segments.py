# SPDX-License-Identifier: Apache-2.0
"""Heads that see chosen segments of old frames, on the engine and head by head in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.small_wan import prompt, small_wan

from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, PlanError, TensorError
from ardiff_engine.memory import PerLayer, Segments, Window
from ardiff_engine.models.wan.positions import rotated, rotation, token_positions
from ardiff_engine.systems import forcing_kv
from ardiff_engine.systems.calls import ANY_NETWORK

SOLVER = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=2)
BLOCK, FRAMES, PARTS = 3, 15, 3
HEADS = PerLayer((Window(7), Window(4, sink=1), Window(4, sink=1)), (0, (1, 2)))
MEMORY = Segments(HEADS, seeing=2, segments=PARTS)
GRID = (2, 3)


class Plain:
    """Keys with their places and values of every frame and layer; every head sees a list of tokens."""

    def __init__(self, model, text: torch.Tensor) -> None:
        self.model = copy.deepcopy(model).double()
        self.text = self.model.prompt_rows(text.double()[None])
        self.held: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.chosen: list[tuple[int, int]] = []

    def choose(self, start: int) -> None:
        """(frame, token) of the segments of the frames before `start` that are least like the next frame."""
        frames = range(max(0, start - 4), start)
        keys = {frame: self.held[1, frame][0][:, 1] for frame in frames}  # of head 1 of layer 1
        size = GRID[0] * GRID[1] // PARTS
        scores = []
        for frame in frames[:-1]:
            for first in range(0, PARTS * size, size):
                tokens = range(first, first + size)
                pairs = [(keys[frame][token], keys[frame + 1][token]) for token in tokens]
                alike = sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / size
                scores.append((alike, frame, tokens))
        best = sorted(scores, key=lambda own: own[0])[:PARTS] if start else []
        self.chosen = [(frame, token) for _, frame, tokens in best for token in tokens]

    @torch.no_grad()
    def call(self, x: torch.Tensor, t: float, block: range) -> torch.Tensor:
        model, stop = self.model, block.stop
        where = rotation(token_positions(torch.tensor(block), *GRID), model.config.head_dim)
        h = model.embedded(x.double()[None])
        embedding, time = model.time_rows(torch.full((1, len(block), 1), t).double())
        wide = range(max(0, stop - 7), stop)
        narrow = sorted({0, *range(max(0, stop - 4), stop)})
        for n, layer in enumerate(model.blocks):

            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                q, k = rotated(q, *where)[0], rotated(k, *where)[0]
                for frame, key, value in zip(block, k.chunk(3), v[0].chunk(3), strict=True):
                    self.held[n, frame] = key, value  # noqa: B023
                outs = []
                for head in range(2):
                    seen = [(f, token) for f in (narrow if n else wide) for token in range(6)]  # noqa: B023
                    seen += self.chosen if n and head else []  # noqa: B023
                    keys, values = (
                        torch.stack([self.held[n, f][i][token, head] for f, token in seen])  # noqa: B023
                        for i in (0, 1)
                    )
                    weights = (q[:, head] @ keys.T / keys.shape[1] ** 0.5).softmax(-1)
                    outs.append(weights @ values)
                return torch.stack(outs, 1)[None]

            h = layer(h, time, attend, self.text, None)
        return model.unpatched(model.head(h, embedding), *GRID)[0]

    def video(self, noise: torch.Tensor) -> torch.Tensor:
        x = noise.double().clone()
        for start in range(0, FRAMES, BLOCK):
            own = range(start, start + BLOCK)
            self.choose(start)
            for level in range(SOLVER.num_steps + 1):
                out = self.call(x[list(own)], float(SOLVER.timesteps[level]), own)
                if level < SOLVER.num_steps:
                    p, q, a, b = SOLVER.coefficients[level, :4]
                    now = x[list(own)]
                    x[list(own)] = a * now + b * (p * now + q * out)
        return x


def request(**changes) -> Request:
    own = {"plan": plan.blocks(BLOCK), "memory": MEMORY, "condition": prompt(1), "size": (4, 6), "seed": 1}
    return Request(FRAMES, **own | changes)


def test_heads_see_chosen_segments() -> None:
    model, noise = small_wan(), torch.randn(FRAMES, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    want = Plain(model, prompt(1)).video(noise)
    engine = Engine(model, solver=SOLVER, max_pages=400)
    got = engine.submit(request(latents=noise)).result()
    assert float((got - want).norm() / want.norm()) < 2e-5
    without = engine.submit(request(latents=noise, memory=HEADS)).result()
    assert float((got - without).norm() / got.norm()) > 1e-3
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0


def test_alone_and_together_are_the_same_bits() -> None:
    model = small_wan()
    requests = [
        request(),
        request(seed=2, memory=HEADS),
        request(seed=3, negative_condition=prompt(2), guidance_scale=2.0),
        request(seed=4, memory=Window(5)),
    ]
    alone = [Engine(model, solver=SOLVER, max_pages=800).submit(own).result() for own in requests]
    engine = Engine(model, solver=SOLVER, max_pages=2000)
    streams = [engine.submit(own) for own in requests]
    for passes in range(9):
        engine.step()
        if passes in (3, 6):
            streams[0].suspend()
            streams[0].resume()
    fork = streams[0].fork()
    for stream, expected in zip([*streams, fork], [*alone, alone[0]], strict=True):
        assert torch.equal(stream.result(), expected)


def test_segments_that_do_not_fit_a_frame_end_their_stream_alone() -> None:
    model = small_wan()
    alone = Engine(model, solver=SOLVER, max_pages=400).submit(request()).result()
    engine = Engine(model, solver=SOLVER, max_pages=800)
    other, stream = engine.submit(request()), engine.submit(request(memory=replace(MEMORY, segments=4)))
    with pytest.raises(TensorError, match="segments"):
        stream.result()
    assert torch.equal(other.result(), alone)
    assert engine.stats().pages_held == 0


def test_heads_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="heads"):
        Segments(HEADS, seeing=2, layer=0)
    with pytest.raises(ConfigError, match="heads"):
        Segments(HEADS, seeing=3)
    with pytest.raises(ConfigError, match="after the other"):
        MEMORY.check(plan.blocks(BLOCK, lag=1).plan(FRAMES, (2,)), small_wan().spec)
    with pytest.raises((ConfigError, PlanError), match="model"):
        forcing_kv.SYSTEM.check(ANY_NETWORK, 21)
