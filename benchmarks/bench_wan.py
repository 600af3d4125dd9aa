# SPDX-License-Identifier: Apache-2.0
"""One block of a causal Wan model by the engine, against the official algorithm in plain PyTorch.

Random weights, blocks of 3 frames, a window of 6 blocks that is full, 4 Euler steps: 4 passes here, in the
first of which the clean frames of the block before are stored; 4 forwards and a clean one on the other side
(plain_wan.py). Latents of both sides must agree before they are timed. Convention: benchmarks/README.md.

Wan 1.3B: width 1536, latents 30 x 52 (390 tokens a frame). All 30 layers take an hour (`--slow`); two of them
show the same ratio. small: width 384, 8 layers, latents 16 x 16 (64 tokens a frame).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from plain_wan import PlainWan
from pytest_benchmark.fixture import BenchmarkFixture
from versus import Row, versus

from ardiff_engine import FlowSchedule, ops, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.memory.page_pool import choose_page_rows
from ardiff_engine.models import WanConfig, WanTransformer
from ardiff_engine.plan import blocks

BLOCK, BLOCKS, STEPS = 3, 6, 4
MOST_BLOCKS = 64
OPPONENT = "plain PyTorch, SDPA, contiguous cache"
AGREES = 1e-4
SMALL = WanConfig(384, 8, 6, 1536)


def random_wan(config: WanConfig) -> WanTransformer:
    """Every weight drawn; gains near 1 and modulations small, as in trained models."""
    model = WanTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.shape[0] > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    return model


class Sides:
    """The engine and its opponent with one noise, both with a full window."""

    def __init__(self, config: WanConfig, size: tuple[int, int]) -> None:
        model = random_wan(config)
        generator = torch.Generator().manual_seed(1)
        shape = (MOST_BLOCKS * BLOCK, config.channels, *size)
        self.noise = torch.randn(shape, generator=generator)
        text = torch.randn(min(77, config.text_tokens), config.text_dim, generator=generator)
        solver = solvers.Euler(FlowSchedule(shift=5.0), STEPS)
        self.timesteps = solver.timesteps[:STEPS].tolist()
        self.sigmas = [t / 1000 for t in self.timesteps] + [0.0]
        memory = Window(BLOCK * BLOCKS)
        frames = MOST_BLOCKS * BLOCK
        tokens = model.spec.tokens(size)
        pages = 3 * BLOCK * BLOCKS * -(-tokens // choose_page_rows(tokens))
        self.engine = Engine(model, solver=solver, memory=memory, plan=blocks(BLOCK), max_pages=pages)
        request = Request(num_frames=frames, size=size, condition=text, latents=self.noise)
        stream = self.engine.submit(request)
        self.frames: Iterator = iter(stream)
        self.plain = PlainWan(model, size, BLOCK, BLOCK * BLOCKS)
        self.plain.read(text)
        self.done = 0

    def ours(self) -> torch.Tensor:
        """[block, C, H, W] of the next block."""
        return torch.stack([frame.latent for frame in islice(self.frames, BLOCK)])

    def theirs(self) -> torch.Tensor:
        first = self.done * BLOCK
        self.done += 1
        return self.plain.next_block(self.noise[first : first + BLOCK], self.timesteps, self.sigmas)


def compare(benchmark: BenchmarkFixture, config: WanConfig, size: tuple[int, int], bar: float) -> None:
    sides = Sides(config, size)
    for _ in range(BLOCKS + 1):
        ours, theirs = sides.ours(), sides.theirs()
        assert float((ours - theirs).norm() / theirs.norm()) < AGREES
    row = Row(
        op="wan block",
        shape=f"width {config.width}, depth {config.depth}, {sides.plain.tokens} tokens a frame",
        threads=2,
        opponent=OPPONENT,
        bar=bar,
    )
    versus(benchmark, row, sides.ours, sides.theirs)


@pytest.mark.parametrize("depth", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_block_of_wan(benchmark: BenchmarkFixture, depth: int) -> None:
    compare(benchmark, WanConfig(depth=depth), (30, 52), bar=1.15)


def test_block_of_a_small_one(benchmark: BenchmarkFixture) -> None:
    compare(benchmark, SMALL, (16, 16), bar=1.8)


@pytest.mark.parametrize("layer", ["1536 -> 1536", "1536 -> 8960", "8960 -> 1536"])
def test_linear_layers(benchmark: BenchmarkFixture, layer: str) -> None:
    """Of one block of frames, as share of the machine's own rate."""
    inputs, outputs = map(int, layer.split(" -> "))
    rows = BLOCK * 390
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    packed = ops.pack_linear(weight)
    flops = 2 * rows * inputs * outputs
    row = Row("wan linear", f"{rows} x {layer}", 2, "F.linear", share_bar=0.85, flops=flops)
    versus(
        benchmark,
        row,
        lambda: ops.linear(x, packed, bias),
        lambda: torch.nn.functional.linear(x, weight, bias),
    )
