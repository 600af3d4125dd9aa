# SPDX-License-Identifier: Apache-2.0
"""Cases of the CUDA frame attention and their float64 oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.attention_cases import Case, relative

from ardiff_engine import ops
from ardiff_engine.ops import attention_work as schedules
from ardiff_engine.ops.attention_work import AttentionWork, attention_work, keep_recorded
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_attention_cuda import recorded_work
from ardiff_engine.ops.frame_table import FrameTable

Tensor = torch.Tensor
STORAGE = [torch.float32, torch.bfloat16, torch.float16]
HALF = STORAGE[1:]
# Where the storage type changes nothing but the rounding, one half type stands for both.
by_kernel = pytest.mark.parametrize("dtype", STORAGE[:2], ids=["float32", "bfloat16"])
Tensors = tuple[Tensor, Tensor, Tensor]


def on_gpu(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    """Schedules are made for a GPU of so many; any GPU can run them."""
    monkeypatch.setattr(schedules, "_multiprocessors", lambda device: multiprocessors)


def given(case: Case, dtype: torch.dtype, device: torch.device) -> Tensors:
    q, k, v = (x.to(device, dtype) for x in case.tensors())
    return q, k, v


def attend(
    tensors: Tensors, table: FrameTable, device: torch.device, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(o, lse) on the CPU; a kernel that finds an id out of range raises."""
    o, lse = frame_attention(*tensors, table.to(device), scale=scale, return_lse=True)
    ops.check_device(device)
    return o.cpu(), lse.cpu()


def work_of(case: Case, device: torch.device, table: FrameTable | None = None) -> AttentionWork:
    on = (case.table() if table is None else table).to(device)
    return attention_work(
        on.frame_ptr, on.group_ptr, on.page_ptr, on.valid, on.seen, case.heads, case.kv_heads
    )


# Pages are permuted; whatever no list names (free pages, tails of pages) is NaN.
RAGGED = Case(
    tokens=[[5, 9, 1], [33, 2], [1]],
    pages=[[3, 7, 1, 10], [7, 2], [9]],
    valid=[[45, 32, 48, 5], [32, 17], [1]],
    seen=[[1, 2, 4], [2, 1], [1]],
    rows=48,
    dim=64,
    heads=2,
    kv_heads=2,
)
SMALL = replace(RAGGED, heads=1, kv_heads=1)
LONG = replace(SMALL, tokens=[[40]], pages=[[4, 1, 0, 2]], valid=[[144, 144, 144, 70]], seen=[[4]], rows=144)


LIMIT = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LSE_LIMIT = 2e-5
FORWARD, BACKWARD, RANDOM = range(3)  # which warp the emulation runs first
by_half = pytest.mark.parametrize("dtype", HALF, ids=lambda d: str(d).removeprefix("torch."))


def compare(case: Case, tensors: Tensors, got: tuple[Tensor, Tensor], scale: float | None = None) -> None:
    o, lse = got
    assert lse.dtype == torch.float32
    want_o, want_lse = case.oracle(*(x.cpu() for x in tensors), scale)
    empty = want_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert relative(o, torch.where(empty[..., None], 0.0, want_o)) <= LIMIT[o.dtype]
    if not empty.all():
        assert float((lse - want_lse)[~empty].abs().max()) <= LSE_LIMIT


def check(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = given(case, dtype, device)
    got = attend(tensors, case.table(), device)
    compare(case, tensors, got)
    return got


# AR-Diffusion: 32-token frames, one page each, causal, after 77 context tokens
CAUSAL = Case(
    tokens=[[32] * 4],
    pages=[[8, 2, 5, 7, 1, 4, 0]],
    valid=[[32, 32, 13, 32, 32, 32, 32]],
    seen=[[4, 5, 6, 7]],
    rows=32,
    dim=72,
    heads=1,
    kv_heads=1,
)
HIDDEN = -torch.inf
UP_TO_9, ALL_9 = [list(range(1, 10))], [list(range(9))]
CASES = {
    "ragged": RAGGED,
    "causal-32": CAUSAL,
    "gqa": replace(RAGGED, heads=6, kv_heads=2),
    "mqa": replace(CAUSAL, heads=3, kv_heads=1, tokens=[[7] * 4]),
    "bias": replace(SMALL, bias=[[0.0, 0.5, -2.0, 1.0], [0.0, 3.0], [-1.0]]),
    "hidden-by-bias": replace(SMALL, bias=[[0.0, HIDDEN, 0.0, HIDDEN], [HIDDEN, 0.0], [HIDDEN]]),
    "frames-of-7": replace(SMALL, tokens=[[7] * 9], pages=ALL_9, valid=[[7] * 9], seen=UP_TO_9, rows=16),
    "one-token-frames": replace(SMALL, tokens=[[1] * 9], pages=ALL_9, valid=[[1] * 9], seen=UP_TO_9, rows=13),
    "out-of-order-views": replace(
        SMALL, tokens=[[7, 0, 7, 7]], pages=[[0, 1, 2]], valid=[[13, 48, 3]], seen=[[3, 3, 1, 2]]
    ),
    "page-listed-twice": replace(SMALL, tokens=[[4]], pages=[[6, 6, 1]], valid=[[13, 4, 2]], seen=[[3]]),
    "empty-views": replace(
        SMALL, tokens=[[3, 4], [5]], pages=[[0, 1], []], valid=[[13, 9], []], seen=[[0, 2], [0]]
    ),
    "empty-pages": replace(SMALL, tokens=[[3, 3]], pages=[[0, 1, 2]], valid=[[0, 13, 0]], seen=[[2, 3]]),
}  # fmt: skip


def check_recorded(
    case: Case, machine: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """What a CUDA graph repeats: one set of addresses, sizes with room, the values of one table after the
    other. The same bits as a call with each table alone."""
    on_gpu(monkeypatch, 132)
    shorter = replace(case, valid=[[*case.valid[0][:-1], 60]])
    first, second, *others = case.pages[0]
    cases = (case, shorter, replace(case, pages=[[second, first, *others]]))
    tensors = given(case, dtype, machine)
    tables = [each.table() for each in cases]
    expected = [attend(tensors, table, machine) for table in tables]
    works = [recorded_work(table.offsets, *tensors) for table in tables]
    assert len({work.sizes for work in works}) == 1 and works[0].sizes[5] > 2
    names = ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen")
    static = tables[0].over({name: getattr(tables[0], name).clone().to(machine) for name in names})
    words = works[0].words.clone().to(machine)
    keep_recorded(static.offsets, case.heads, case.kv_heads, words, works[0])
    monkeypatch.setattr(schedules, "_planned", lambda *arguments: pytest.fail("made a schedule of its own"))
    for table, work, (o, lse) in zip(tables, works, expected, strict=True):
        words.copy_(work.words)
        for name in names:
            getattr(static, name).copy_(getattr(table, name))
        got = frame_attention(*tensors, static, return_lse=True)
        assert torch.equal(got[0].cpu(), o) and torch.equal(got[1].cpu(), lse)
