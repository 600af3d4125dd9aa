# SPDX-License-Identifier: Apache-2.0
"""The schedule of `frame_attention` on a GPU: which thread block computes which queries and keys.

Built on the host by csrc/cpu/common/attention_work.cpp from the offsets of a FrameTable, copied to the device
once, and kept for as long as the table's tensors. It holds no page ids and no biases: the kernel reads those.
A FrameTable leaves its offsets in host memory here (`keep_host_copies`), so not even the first call with a
table waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ardiff_engine._native import native
from ardiff_engine.errors import KernelError, PageTableError, explain

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """`AttentionPlan` of csrc/include/ardiff/attention_work.h, with its buffer on the device.

    sizes: tiles, merges, key blocks, frames, rows of a tile, parts.
    """

    buffer: Tensor
    sizes: tuple[int, ...]

    def workspace(self, kv_heads: int, dim: int) -> Tensor | None:
        """Where the parts of this launch go; None without parts."""
        floats = native().attention_partial_floats(self.sizes, kv_heads, dim)  # type: ignore[union-attr]
        return torch.empty(floats, dtype=torch.float32, device=self.buffer.device) if floats else None


@dataclass(frozen=True, slots=True)
class _Schedules:
    """Of one table: what they were built from besides `seen`, all of it in host memory (None: to be read back
    from the device), and the schedules by (heads, kv_heads)."""

    offsets: tuple[Tensor, ...]
    host: tuple[Tensor, ...] | None = None
    works: dict[tuple[int, int], AttentionWork] = field(default_factory=dict)


def attention_work(
    frame_ptr: Tensor,
    group_ptr: Tensor,
    page_ptr: Tensor,
    valid: Tensor,
    seen: Tensor,
    heads: int,
    kv_heads: int,
) -> AttentionWork:
    """The schedule of these tensors of a table, for the GPU that they are on.

    Raises:
        PageTableError: the tensors were edited and no longer fit one another.
        KernelError: a CUDA graph is being captured, and this table has no schedule yet.
    """
    kept, offsets = _kept(), (frame_ptr, group_ptr, page_ptr, valid)
    schedules = kept.get(seen)
    if schedules is None or any(a is not b for a, b in zip(schedules.offsets, offsets, strict=True)):
        schedules = kept[seen] = _Schedules(offsets)
    work = schedules.works.get((heads, kv_heads))
    if work is None:
        host = schedules.host or _read_back((*offsets, seen))
        work = schedules.works[heads, kv_heads] = _build(host, heads, kv_heads, seen.device)
    return work


def keep_host_copies(offsets: tuple[Tensor, ...], host: tuple[Tensor, ...]) -> None:
    """Host copies of a table's frame_ptr, group_ptr, page_ptr, valid and seen, for its schedules."""
    *others, seen = offsets
    _kept()[seen] = _Schedules(tuple(others), host)


def host_copies(seen: Tensor) -> tuple[Tensor, ...] | None:
    """What `keep_host_copies` was given for the table of this `seen`."""
    schedules = _kept().get(seen)
    return None if schedules is None else schedules.host


@cache
def _kept() -> WeakTensorKeyDictionary:
    """Schedules by the `seen` of their table; an entry goes when that tensor does."""
    return WeakTensorKeyDictionary()


def _read_back(offsets: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Waits for the device: only for tensors that no FrameTable has had in its hands."""
    return torch.cat(tuple(offsets)).cpu().split([tensor.numel() for tensor in offsets])


def _build(host: Sequence[Tensor], heads: int, kv_heads: int, device: torch.device) -> AttentionWork:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise KernelError(
            explain(
                "frame_attention inside of a CUDA graph capture",
                got="a table that it has not met before",
                expected="a table with a schedule",
                fix="Call it once with this table before the capture.",
            )
        )
    addresses = [tensor.data_ptr() for tensor in host]
    groups, multiprocessors = host[1].numel() - 1, _multiprocessors(device)
    try:
        buffer, sizes = native().attention_work(  # type: ignore[union-attr]
            addresses, groups, heads, kv_heads, multiprocessors
        )
    except IndexError as error:
        raise PageTableError(
            explain(
                "tensors of the table",
                got=f"values that do not fit ({error})",
                expected="those of the table when it was built",
                fix="Do not edit a FrameTable: build another one.",
            )
        ) from error
    work = torch.frombuffer(buffer, dtype=torch.int32).to(device, non_blocking=True)
    return AttentionWork(work, tuple(sizes))


def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
