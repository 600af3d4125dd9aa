# SPDX-License-Identifier: Apache-2.0
"""Rows of pages that become weighted sums of others, against float64 and the numbers of SoulX-LiveAct: on the
CPU and on a GPU, emulated where there is none. Everything else in the pool stays bit for bit."""

from __future__ import annotations

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine import ops
from ardiff_engine.errors import PageTableError, TensorError
from ardiff_engine.ops import pool_pages as module

pytest_plugins = ["cuda_machine"]

GOLDEN = Path(__file__).parent / "golden" / "systems" / "liveact_convkv.npz"
LAYERS, PAGES, HEADS, ROWS = 3, 4, 2, 5
SOURCES = torch.tensor([[0, 7, 2], [19, -1, 3], [-1, -1, 4], [-1, -1, -1]])
TARGETS = torch.tensor([9, 10, 16, 12])
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
by_dtype = pytest.mark.parametrize("dtype", LIMITS, ids=lambda d: str(d).removeprefix("torch."))
by_weights = pytest.mark.parametrize("weighting", ["mean", "of all layers", "of each layer"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_weights(weighting: str, dim: int) -> torch.Tensor | None:
    if weighting == "mean":
        return None
    return draw(1 if weighting == "of all layers" else LAYERS, SOURCES.shape[1], HEADS, dim, seed=1)


def expected(pages: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """One row after the other, in float64."""
    made, size = pages.double(), pages.shape[3]
    for sources, target in zip(SOURCES.tolist(), TARGETS.tolist(), strict=True):
        there = [(j, row) for j, row in enumerate(sources) if row >= 0]
        total = torch.zeros(LAYERS, HEADS, pages.shape[4], dtype=torch.float64)
        for j, row in there:
            share = 1 / len(there) if weights is None else weights[:, j].double()
            total += share * pages[:, row // size, :, row % size].double()
        made[:, target // size, :, target % size] = total
    return made


def checked(device: torch.device | str, weighting: str, dim: int, dtype: torch.dtype) -> None:
    pages, weights = draw(LAYERS, PAGES, HEADS, ROWS, dim).to(dtype), drawn_weights(weighting, dim)
    made = pages.to(device, copy=True)
    own = None if weights is None else weights.to(device)
    ops.pool_pages_(made, SOURCES.to(device), TARGETS.to(device), own)
    wanted = expected(pages, weights)
    error = (made.cpu().double() - wanted).abs()
    assert bool((error <= LIMITS[dtype] * wanted.abs() + 2e-6).all())
    untouched = torch.ones(PAGES * ROWS, dtype=torch.bool)
    untouched[TARGETS] = False
    rows = [tensor.transpose(1, 2).flatten(2, 3)[:, :, untouched] for tensor in (made.cpu(), pages)]
    assert torch.equal(*rows)


@pytest.mark.usefixtures("isa")
@by_weights
@pytest.mark.parametrize("dim", [1, 10, 72])
def test_cpu(weighting: str, dim: int) -> None:
    checked("cpu", weighting, dim, torch.float32)


@by_weights
@by_dtype
def test_reference(monkeypatch: pytest.MonkeyPatch, weighting: str, dtype: torch.dtype) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    checked("cpu", weighting, 10, dtype)


@by_dtype
@by_weights
@pytest.mark.parametrize("dim", [1, 10, 72])
def test_cuda(machine: torch.device, weighting: str, dim: int, dtype: torch.dtype) -> None:
    checked(machine, weighting, dim, dtype)


@pytest.mark.parametrize(("source", "target"), [(-2, 9), (20, 9), (2**40, 9), (0, -1), (0, 20)])
def test_rows_outside_are_left_alone_and_reported(
    machine: torch.device, source: int, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_check_rows", lambda *_: None)  # reads ids, where they are on the CPU
    pages = draw(LAYERS, PAGES, HEADS, ROWS, 8)
    made = pages.to(machine, copy=True)
    sources, targets = torch.tensor([[1, source], [2, 3]]), torch.tensor([target, 11])
    ops.pool_pages_(made, sources.to(machine), targets.to(machine))
    with pytest.raises(PageTableError, match="pool_pages_"):
        ops.check_device(machine)
    mean = (pages[:, 0, :, 2] + pages[:, 0, :, 3]) / 2
    torch.testing.assert_close(made[:, 2, :, 1].cpu(), mean)
    made[:, 2, :, 1] = pages[:, 2, :, 1].to(machine)
    assert torch.equal(made.cpu(), pages)


@pytest.mark.usefixtures("isa")
def test_five_frames_become_one_as_in_liveact() -> None:
    """Five neighbouring tokens of five frames in a row, by a filter of each channel: V by that of K, as
    released. Pages hold a frame each; the merged frame is another page."""
    official = {name: torch.as_tensor(value) for name, value in np.load(GOLDEN).items()}
    tokens, merged = official["k"].shape[1], official["k_merged"].shape[1]
    heads, dim = official["k"].shape[2:]
    taps = official["filter_k"].shape[2]
    assert tokens == taps * merged
    sources = torch.arange(tokens).reshape(merged, taps)
    assert torch.equal(
        torch.zeros(tokens, merged, dtype=torch.bool).scatter(0, sources.T, True), official["merge_indicator"]
    )
    own = {key: official[key][:, 0].T.reshape(1, taps, heads, dim) for key in ("filter_k", "filter_v")}
    cases = [("k", "filter_k", "k_merged"), ("v", "filter_k", "v_merged")]
    cases += [("k", None, "k_mean"), ("v", None, "v_mean")]
    for name, weights, found in cases:
        frames = official[name][0].reshape(taps, merged, heads, dim).transpose(1, 2)
        pages = torch.cat([frames, torch.full_like(frames[:1], torch.nan)])[None].contiguous()
        ops.pool_pages_(pages, sources, tokens + torch.arange(merged), own[weights] if weights else None)
        torch.testing.assert_close(pages[0, taps].transpose(0, 1), official[found][0], rtol=1e-6, atol=1e-6)
    assert not torch.equal(own["filter_k"], own["filter_v"])


def test_one_row_for_equal_ones_with_a_bias_is_exact() -> None:
    """TempCache: m equal keys are one with log m on its logits, and the mean of their values."""
    frames, copies, dim = 3, 4, 16
    k = draw(1, frames, 1, ROWS, dim)
    k = torch.cat(
        [k, k[:, -1:].expand(1, copies - 1, 1, ROWS, dim), torch.zeros_like(k[:, :1])], 1
    ).contiguous()
    v = draw(*k.shape, seed=1)
    pages = frames + copies - 1
    same = torch.arange(frames - 1, pages)
    sources = same * ROWS + torch.arange(ROWS)[:, None]
    last = torch.zeros(1, copies, 1, dim).index_fill(1, torch.tensor([copies - 1]), 1.0)
    targets = pages * ROWS + torch.arange(ROWS)
    q = draw(2, 1, dim, seed=2)
    every = ops.FrameTable.build([2], [list(range(pages))], [[ROWS] * pages])
    wanted = ops.frame_attention(q, k[0], v[0], every)
    ops.pool_pages_(k, sources, targets, last)
    ops.pool_pages_(v, sources, targets)
    seen = [*range(frames - 1), pages]
    bias = [[0.0] * (frames - 1) + [log(copies)]]
    few = ops.FrameTable.build([2], [seen], [[ROWS] * len(seen)], bias=bias)
    torch.testing.assert_close(ops.frame_attention(q, k[0], v[0], few), wanted, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("sources", "targets"),
    [
        ([[20, 0]], [9]),
        ([[-2, 0]], [9]),
        ([[0, 1]], [-1]),
        ([[0, 1]], [20]),
        ([[0, 1]], [1]),
        ([[0], [1]], [9, 9]),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_written(sources: list, targets: list) -> None:
    pages = draw(LAYERS, PAGES, HEADS, ROWS, 4)
    before = pages.clone()
    with pytest.raises(PageTableError):
        ops.pool_pages_(pages, torch.tensor(sources), torch.tensor(targets))
    assert torch.equal(pages, before)


@pytest.mark.parametrize(
    "given",
    [
        {"pages": draw(2, 3, 4, 5)},
        {"pages": draw(LAYERS, PAGES, ROWS, HEADS, 4).transpose(2, 3)},
        {"sources": SOURCES[:, 0]},
        {"sources": SOURCES.double()},
        {"targets": TARGETS[:2]},
        {"weights": draw(2, 3, HEADS, 4)},
        {"weights": draw(1, 3, HEADS, 4).double()},
    ],
    ids=str,
)
def test_wrong_tensors(given: dict) -> None:
    good = {"pages": draw(LAYERS, PAGES, HEADS, ROWS, 4), "sources": SOURCES, "targets": TARGETS}
    with pytest.raises(TensorError):
        ops.pool_pages_(**good | given)


def test_op() -> None:
    pages = draw(LAYERS, PAGES, HEADS, ROWS, 4)
    torch.library.opcheck(torch.ops.ardiff.pool_pages_.default, (pages, SOURCES, TARGETS, None))
