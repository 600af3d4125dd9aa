# SPDX-License-Identifier: Apache-2.0
"""The schedules of `frame_attention` on a GPU: which thread block computes which queries and keys.

Built on the host by csrc/cpu/common/attention_work.cpp and attention_stream_k.cpp (Hopper) from the
offsets of a FrameTable, copied to the device once, and kept for as long as the table's tensors. They hold no
page ids and no biases: the kernels read those. A FrameTable leaves its offsets in host memory here
(`keep_host_copies`), so not even the first call with a table waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
class StreamKWork:
    """`StreamKPlan` of csrc/include/ardiff/attention_stream_k.h, with its buffer on the device.

    sizes: items, merges, boxes, frames, workers, parts.
    """

    buffer: Tensor
    sizes: tuple[int, ...]
    block_rows: int

    def workspace(self, dim: int) -> Tensor | None:
        """Where the parts of this launch go; None without parts."""
        floats = native().attention_stream_k_floats(self.sizes, dim)  # type: ignore[union-attr]
        return torch.empty(floats, dtype=torch.float32, device=self.buffer.device) if floats else None


@dataclass(frozen=True, slots=True, eq=False)
class RecordedWork:
    """A schedule in host memory, int32, and its sizes: schedules of equal sizes can take each other's place.

    block_rows: of the Hopper kernel; 0: the schedule is of the sm_80 kernel.
    """

    words: Tensor
    sizes: tuple[int, ...]
    block_rows: int = 0


@dataclass(frozen=True, slots=True)
class _Schedules:
    """Of one table: what they were built from besides `seen`, all of it in host memory (None: to be read back
    from the device), and the schedules by (heads, kv_heads), those of the Hopper kernel by (heads, kv_heads,
    block_rows)."""

    offsets: tuple[Tensor, ...]
    host: tuple[Tensor, ...] | None = None
    works: dict[tuple[int, int], AttentionWork] = field(default_factory=dict)
    stream_k: dict[tuple[int, int, int], StreamKWork] = field(default_factory=dict)


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
    schedules = _schedules(frame_ptr, group_ptr, page_ptr, valid, seen)
    work = schedules.works.get((heads, kv_heads))
    if work is None:
        work = schedules.works[heads, kv_heads] = _build(schedules, seen, heads, kv_heads)
    return work


def stream_k_work(
    frame_ptr: Tensor,
    group_ptr: Tensor,
    page_ptr: Tensor,
    valid: Tensor,
    seen: Tensor,
    heads: int,
    kv_heads: int,
    block_rows: int,
) -> StreamKWork:
    """As `attention_work`, for the Hopper kernel, with boxes of block_rows rows."""
    schedules = _schedules(frame_ptr, group_ptr, page_ptr, valid, seen)
    key = (heads, kv_heads, block_rows)
    work = schedules.stream_k.get(key)
    if work is None:
        work = schedules.stream_k[key] = _build_stream_k(schedules, seen, *key)
    return work


def _schedules(
    frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor, valid: Tensor, seen: Tensor
) -> _Schedules:
    kept, offsets = _kept(), (frame_ptr, group_ptr, page_ptr, valid)
    schedules = kept.get(seen)
    if schedules is None or any(a is not b for a, b in zip(schedules.offsets, offsets, strict=True)):
        schedules = kept[seen] = _Schedules(offsets)
    return schedules


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


def _build(schedules: _Schedules, seen: Tensor, heads: int, kv_heads: int) -> AttentionWork:
    module = native()
    plan = module.attention_work  # type: ignore[union-attr]
    return AttentionWork(*_planned(schedules, seen, plan, heads, kv_heads))


def _build_stream_k(
    schedules: _Schedules, seen: Tensor, heads: int, kv_heads: int, block_rows: int
) -> StreamKWork:
    def plan(*arguments: object) -> tuple[bytearray, Sequence[int]]:
        made: tuple[bytearray, Sequence[int]] = native().attention_stream_k(  # type: ignore[union-attr]
            *arguments, block_rows
        )
        return made

    return StreamKWork(*_planned(schedules, seen, plan, heads, kv_heads), block_rows)


def roomy_words(offsets: Sequence[Tensor], heads: int, kv_heads: int, device: torch.device) -> RecordedWork:
    """The schedule of a table in host memory, for a launch that is recorded once and repeated with others.

    offsets: frame_ptr, group_ptr, page_ptr, valid, seen. Sizes are rounded up, so that similar tables have
    the same ones; what is added to the schedule does nothing (`roomy` of attention_work.h).
    """
    plan = native().attention_work  # type: ignore[union-attr]
    groups = offsets[1].numel() - 1
    buffer, sizes = plan(_host_addresses(offsets), groups, heads, kv_heads, _multiprocessors(device), True)
    return RecordedWork(torch.frombuffer(buffer, dtype=torch.int32), tuple(sizes))


def stream_k_words(
    offsets: Sequence[Tensor], heads: int, kv_heads: int, block_rows: int, device: torch.device
) -> RecordedWork:
    """As `roomy_words`, for the Hopper kernel, whose workers are as many as the GPU has multiprocessors."""
    plan = native().attention_stream_k  # type: ignore[union-attr]
    groups = offsets[1].numel() - 1
    buffer, sizes = plan(
        _host_addresses(offsets), groups, heads, kv_heads, _multiprocessors(device), block_rows, True
    )
    return RecordedWork(torch.frombuffer(buffer, dtype=torch.int32), tuple(sizes), block_rows)


def keep_recorded(
    offsets: tuple[Tensor, ...], heads: int, kv_heads: int, words: Tensor, work: RecordedWork
) -> None:
    """Calls with a table of these tensors run by the schedule in `words`, whatever it holds by then.

    offsets: frame_ptr, group_ptr, page_ptr, valid, seen of a table whose values change. words: on the device,
    as many as `work` has. Sizes are those of `work`, so only schedules of equal sizes may be put there.
    """
    *others, seen = offsets
    schedules = _kept()[seen] = _Schedules(tuple(others))
    if work.block_rows:
        key = (heads, kv_heads, work.block_rows)
        schedules.stream_k[key] = StreamKWork(words, work.sizes, work.block_rows)
    else:
        schedules.works[heads, kv_heads] = AttentionWork(words, work.sizes)


def _host_addresses(offsets: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in offsets]


def _planned(
    schedules: _Schedules,
    seen: Tensor,
    plan: Callable[..., tuple[bytearray, Sequence[int]]],
    heads: int,
    kv_heads: int,
) -> tuple[Tensor, tuple[int, ...]]:
    """What `plan` makes of a table's offsets: its buffer, on the device, and its sizes."""
    device = seen.device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise KernelError(
            explain(
                "frame_attention inside of a CUDA graph capture",
                got="a table that it has not met before",
                expected="a table with a schedule",
                fix="Call it once with this table before the capture.",
            )
        )
    host = schedules.host or _read_back((*schedules.offsets, seen))
    addresses = _host_addresses(host)
    groups, multiprocessors = host[1].numel() - 1, _multiprocessors(device)
    try:
        buffer, sizes = plan(addresses, groups, heads, kv_heads, multiprocessors)
    except IndexError as error:
        raise PageTableError(
            explain(
                "tensors of the table",
                got=f"values that do not fit ({error})",
                expected="those of the table when it was built",
                fix="Do not edit a FrameTable: build another one.",
            )
        ) from error
    return torch.frombuffer(buffer, dtype=torch.int32).to(device, non_blocking=True), tuple(sizes)


def _read_back(offsets: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Waits for the device: only for tensors that no FrameTable has had in its hands."""
    return torch.cat(tuple(offsets)).cpu().split([tensor.numel() for tensor in offsets])


def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
