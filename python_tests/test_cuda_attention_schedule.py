# SPDX-License-Identifier: Apache-2.0
"""The schedule of the CUDA frame attention: made once for a table, and kept for as long as it lives."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.cuda_attention import (
    LONG,
    SMALL,
    Tensor,
    attend,
    by_kernel,
    check_recorded,
    given,
    work_of,
)

from ardiff_engine import ops
from ardiff_engine.errors import KernelError, PageTableError
from ardiff_engine.ops import attention_work as schedules
from ardiff_engine.ops.attention_work import AttentionWork, attention_work
from ardiff_engine.ops.frame_attention import frame_attention

EMULATED = "attention_module"
pytest_plugins = ["cuda_machine"]


def count_schedules(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    built: list[tuple[int, int]] = []
    build = schedules._build

    def counted(of_table: Any, seen: Tensor, heads: int, kv_heads: int) -> AttentionWork:
        built.append((heads, kv_heads))
        return build(of_table, seen, heads, kv_heads)

    monkeypatch.setattr(schedules, "_build", counted)
    return built


def test_a_table_is_scheduled_once(machine: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the op runs through the dispatcher, for its gradients; page ids may change in place."""
    built = count_schedules(monkeypatch)
    q, k, v = given(SMALL, torch.float32, machine)
    table = SMALL.table().to(machine)
    for _ in range(3):
        first = attend((q, k, v), table, machine)
    q.requires_grad_()
    o, lse = frame_attention(q, k, v, table, return_lse=True)
    assert torch.equal(o.detach().cpu(), first[0]) and torch.equal(lse.detach().cpu(), first[1])
    assert built == [(1, 1)]
    moved = table.pages.clone()
    table.pages[0], k[11], v[11] = 11, k[int(moved[0])], v[int(moved[0])]
    again = attend((q.detach(), k, v), table, machine)
    assert built == [(1, 1)] and torch.equal(again[0], first[0])
    attend(given(replace(SMALL, heads=2), torch.float32, machine), table, machine)
    assert built == [(1, 1), (2, 1)]
    other = replace(table, seen=table.seen.clone())
    attend((q.detach(), k, v), other, machine)
    assert built == [(1, 1), (2, 1), (1, 1)]
    attend((q.detach(), k, v), replace(table, frame_ptr=table.frame_ptr.clone()), machine)
    assert len(built) == 4, "another table that shares one tensor"


def test_the_offsets_of_a_moved_table_are_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose memory cannot be read at all; the schedule is that of the table on the CPU."""
    monkeypatch.setattr(schedules, "_multiprocessors", lambda device: 132)
    table = SMALL.table()
    moved = table.to("meta")
    work = work_of(SMALL, torch.device("meta"), moved)
    assert work.buffer.device.type == "meta"
    here = work_of(SMALL, torch.device("cpu"), table)
    assert work.sizes == here.sizes and work.buffer.shape == here.buffer.shape
    strangers = [
        getattr(moved, name).clone() for name in ("frame_ptr", "group_ptr", "page_ptr", "valid", "seen")
    ]
    with pytest.raises(NotImplementedError, match="meta"):
        attention_work(*strangers, 1, 1)


def test_a_schedule_goes_with_its_table(machine: torch.device) -> None:
    before = len(schedules._kept())
    table = SMALL.table().to(machine)
    attend(given(SMALL, torch.float32, machine), table, machine)
    assert len(schedules._kept()) == before + 1
    del table
    gc.collect()
    assert len(schedules._kept()) == before


@by_kernel
def test_a_recorded_call_takes_the_schedules_of_other_tables(
    machine: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    check_recorded(LONG, machine, monkeypatch, dtype)


def test_an_edited_table_is_a_typed_error(machine: torch.device) -> None:
    """Where its offsets are read from the device; those that a FrameTable left on the host cannot change."""
    tensors, table = given(SMALL, torch.float32, machine), SMALL.table().to(machine)
    schedules._kept().clear()
    table.seen[0] = 99
    with pytest.raises(PageTableError, match="FrameTable"):
        attend(tensors, table, machine)


@pytest.mark.gpu
def test_a_steady_call_neither_waits_nor_is_refused_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    monkeypatch.delenv("ARDIFF_HOPPER", raising=False)
    device = torch.device("cuda", torch.cuda.current_device())
    ops.check_device(device)
    tensors, table = given(LONG, torch.bfloat16, device), LONG.table().to(device)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(KernelError, match="table"), torch.cuda.graph(graph):
        frame_attention(*tensors, table)
    first = frame_attention(*tensors, table)
    torch.cuda.set_sync_debug_mode("error")
    try:
        frame_attention(*tensors, table)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = frame_attention(*tensors, table)
    again.zero_()
    graph.replay()
    assert torch.equal(again, first)
