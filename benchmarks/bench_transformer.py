# SPDX-License-Identifier: Apache-2.0
"""The transformer against the same network in plain PyTorch with SDPA (plain_network.py), same weights.

Width 384, depth 8, 6 heads, 32 tokens a frame, 16 frames, 77 context tokens, random weights.

tick: one pass over the last 1, 4 or 16 frames of a full window; K and V of the frames before lie in pages on
our side and contiguously on the other. training step: forward, loss and backward over 4 clips of 16 frames.
Both sides must agree before they are timed. Convention: benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from engine_run import random_model
from plain_network import PlainNetwork
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.models import ARDiffusionConfig, CellBatch
from ardiff_engine.ops import FrameTable

CONFIG = ARDiffusionConfig(width=384, depth=8, heads=6)
OPPONENT = "plain PyTorch, SDPA"
AGREES = 2e-5


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("cells", [1, 4, 16])
def test_tick(benchmark: BenchmarkFixture, cells: int, threads: int) -> None:
    model = random_model(CONFIG)
    rows, frames, context = CONFIG.tokens_per_frame, CONFIG.num_frames, CONFIG.context_tokens
    generator = torch.Generator().manual_seed(2)
    # Pages in no order: context, then frames.
    context_pages = -(-context // rows)
    order = torch.randperm(context_pages + frames, generator=generator)
    shape = (2, CONFIG.depth, len(order), CONFIG.heads, rows, CONFIG.head_dim)
    k_pages, v_pages = torch.randn(shape, generator=generator)
    valid = [rows] * (context_pages - 1) + [context - (context_pages - 1) * rows] + [rows] * frames
    seen = [context_pages + frame + 1 for frame in range(frames - cells, frames)]
    slots = (order[-cells:, None] * rows + torch.arange(rows)).reshape(-1)
    batch = CellBatch(
        num_contexts=0,
        slots=slots,
        positions=torch.cartesian_prod(torch.arange(frames - cells, frames), torch.arange(rows)),
        frame_ids=torch.arange(1, cells + 1, dtype=torch.int32).repeat_interleave(rows),
        table=FrameTable.build([[rows] * cells], [order.tolist()], [valid], [seen]),
        k_pages=k_pages,
        v_pages=v_pages,
    )
    x = torch.randn(cells * rows, CONFIG.channels, generator=generator)
    model.freeze()
    tables = model.tables(torch.linspace(900, 100, cells))
    plain = PlainNetwork(model)
    k, v = (contiguous(pages, order, valid) for pages in (k_pages, v_pages))
    own = tables.parts[0][:, 1:].contiguous()
    assert relative(model(x, batch, tables), plain.tick(x, own, k, v)) < AGREES
    row = Row(
        op="transformer tick",
        shape=f"{cells} cells of {rows} tokens, width {CONFIG.width}, depth {CONFIG.depth}",
        threads=threads,
        opponent=OPPONENT,
        bar=1.3,
    )
    versus(benchmark, row, lambda: model(x, batch, tables), lambda: plain.tick(x, own, k, v))


@pytest.mark.parametrize("threads", THREADS)
def test_training_step(benchmark: BenchmarkFixture, threads: int) -> None:
    model = random_model(CONFIG).train()
    clips, frames = 4, CONFIG.num_frames
    x = torch.randn(clips, frames, CONFIG.tokens_per_frame, CONFIG.channels)
    target, t = torch.randn_like(x), torch.rand(clips, frames) * 999
    context = torch.randn(clips, CONFIG.context_tokens, CONFIG.context_dim)
    plain = PlainNetwork(model)

    def step(forward) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(forward(x, t, context), target).backward()
        return model.layers[0].attn.qkv.weight.grad

    assert relative(step(model.forward_clip), step(plain.clips)) < AGREES
    row = Row(
        op="training step",
        shape=f"{clips} clips of {frames} frames, width {CONFIG.width}, depth {CONFIG.depth}",
        threads=threads,
        opponent=OPPONENT,
        bar=1.3,
    )
    versus(benchmark, row, lambda: step(model.forward_clip), lambda: step(plain.clips))


def contiguous(pages: torch.Tensor, order: torch.Tensor, valid: list[int]) -> torch.Tensor:
    """[layers, pages, heads, rows, head_dim] -> [layers, heads, tokens, head_dim], in the views' order."""
    rows = [pages[:, page, :, :count] for page, count in zip(order.tolist(), valid, strict=True)]
    return torch.cat(rows, dim=2).contiguous()
