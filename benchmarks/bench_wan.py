# SPDX-License-Identifier: Apache-2.0
"""One block of a causal Wan model by the engine, against the official algorithm in plain PyTorch.

Random weights, blocks of 3 frames, a window of 6 blocks that is full, 4 Euler steps: 4 passes here, in the
first of which the clean frames of the block before are stored; 4 forwards and a clean one on the other side
(plain_wan.py). Latents of both sides must agree before they are timed. Convention: benchmarks/README.md.

Wan 1.3B: width 1536, latents 30 x 52 (390 tokens a frame). All 30 layers take an hour (`--slow`; a shorter
way is `wan_pairs.py whole`). Two of them show a ratio that is 9 % higher, by FLOPs: of frames that are only
stored the last layer makes K and V alone.
small: width 384, 8 layers, latents 16 x 16 (64 tokens a frame).

Against diffusers' own transformer: one pass over a block without a past, which both can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from plain_wan import PlainWan
from pytest_benchmark.fixture import BenchmarkFixture
from versus import Row, versus

from ardiff_engine import FlowSchedule, ops, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Full, Window
from ardiff_engine.models import WanConfig, WanTransformer
from ardiff_engine.plan import blocks
from ardiff_engine.weights import load_wan

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
    """The engine and its opponent with one noise."""

    def __init__(
        self, config: WanConfig, size: tuple[int, int], *, window: int = BLOCKS, given: int = 0
    ) -> None:
        """window: in blocks. given: blocks that both sides go on from; they need not be made then."""
        model = random_wan(config)
        generator = torch.Generator().manual_seed(1)
        shape = (MOST_BLOCKS * BLOCK, config.channels, *size)
        self.noise = torch.randn(shape, generator=generator)
        text = torch.randn(min(77, config.text_tokens), config.text_dim, generator=generator)
        solver = solvers.Euler(FlowSchedule(shift=5.0), STEPS)
        self.timesteps = solver.timesteps[:STEPS].tolist()
        self.sigmas = [t / 1000 for t in self.timesteps] + [0.0]
        seen, clean = BLOCK * window, self.noise[: BLOCK * given]
        memory, plan = Window(seen), blocks(BLOCK)
        request = Request(
            num_frames=len(self.noise),
            size=size,
            condition=text,
            latents=self.noise[len(clean) :],
            prefix=clean if given else None,
        )
        needed = Engine.memory_plan(model, solver=solver, memory=memory, plan=plan, request=request)
        self.engine = Engine(model, solver=solver, memory=memory, plan=plan, max_pages=needed.pages)
        self.frames: Iterator = iter(self.engine.submit(request))
        self.plain = PlainWan(model, size, BLOCK, seen)
        self.plain.read(text)
        for number in range(given):
            self.plain.given(clean[BLOCK * number : BLOCK * (number + 1)])
        self.done = given

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


class OnePass:
    """Noise to the end of one Euler step, by the engine and by diffusers' transformer."""

    def __init__(self, folder: Path, size: tuple[int, int], depth: int) -> None:
        """folder: for the weights, which both sides read."""
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        self.model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=12,
            attention_head_dim=128,
            ffn_dim=8960,
            num_layers=depth,
        ).eval()
        self.model.save_pretrained(folder)
        own = load_wan(folder)
        self.noise, self.text = torch.randn(BLOCK, 16, *size), torch.zeros(512, 4096)
        self.text[:77] = torch.randn(77, 4096)
        solver, memory, plan = solvers.Euler(FlowSchedule(shift=5.0), 1), Full(), blocks(BLOCK)
        needed = Engine.memory_plan(own, solver=solver, memory=memory, plan=plan, request=self._request())
        self.engine = Engine(own, solver=solver, memory=memory, plan=plan, max_pages=needed.pages)
        self.timestep = solver.timesteps[:1].float()

    def ours(self) -> torch.Tensor:
        return self.engine.submit(self._request()).result()

    @torch.no_grad()
    def theirs(self) -> torch.Tensor:
        x = self.noise.transpose(0, 1)[None]
        flow = self.model(x, self.timestep, self.text[None], return_dict=False)[0]
        return self.noise - float(self.timestep) / 1000 * flow[0].transpose(0, 1)

    def _request(self) -> Request:
        height, width = self.noise.shape[2:]
        return Request(num_frames=BLOCK, size=(height, width), condition=self.text, latents=self.noise)


@pytest.mark.parametrize("depth", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_one_pass(benchmark: BenchmarkFixture, depth: int, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    sides = OnePass(tmp_path, (30, 52), depth)
    ours, theirs = sides.ours(), sides.theirs()
    assert float((ours - theirs).norm() / theirs.norm()) < AGREES
    shape = f"width 1536, depth {depth}, 3 frames of 390 tokens"
    row = Row("wan pass", shape, 2, "diffusers' WanTransformer3DModel", bar=1.0)
    versus(benchmark, row, sides.ours, sides.theirs)


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
