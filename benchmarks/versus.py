# SPDX-License-Identifier: Apache-2.0
"""One row of the table of `ardiff bench`: an op against its opponent, and against what the machine can do.

    versus(benchmark, Row(op="modulate", shape="16384 x 1152", threads=2, opponent="layer_norm, ...",
                          bar=2.0, moved_bytes=..., share_bar=0.8), ours, opponent)

Both sides are timed in turns, together with a copy of `moved_bytes` or a matrix product, so that a change of
the machine's pace meets all of them. A side is called twice per turn and the second call counts: the first
one brings its own data into the caches. The times are the least of all turns.

The rows reach the table through `extra_info`; benchmarks/README.md lists the fields.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from unittest import mock

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ardiff_engine import bench_select

THREADS = (1, 2)
_BUDGET = 2.5  # seconds per row
_LEAST, _FEW, _MOST = 2, 5, 40  # turns: of the slowest rows, of slow ones, of any
_SLOW = 60.0  # seconds for those few turns
_GEMM = 1024
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True, slots=True)
class Row:
    """What is compared: `ours` and `opponent` of `versus` give the times.

    bar: the least ratio asked for; share_bar: the least share of the copy or GEMM rate; None for no demand.
    moved_bytes: what must be read and written at least; flops: for ops that are limited by arithmetic.
    opponent_scale: where the opponent runs a part of the work only, how many such parts make the whole.
    """

    op: str
    shape: str
    threads: int
    opponent: str
    bar: float | None = None
    share_bar: float | None = None
    moved_bytes: int = 0
    flops: int = 0
    opponent_scale: float = 1.0


def versus(
    benchmark: BenchmarkFixture, row: Row, ours: Callable[[], object], opponent: Callable[[], object]
) -> None:
    """Times both sides on `row.threads` threads and records the row.

    ARDIFF_BACKEND=cpu: an op that cannot run natively raises, instead of timing PyTorch under its name.
    """
    bench_select.row(row.op, row.shape, row.threads, row.opponent)
    _keep_freed_memory()
    with torch_threads(row.threads), mock.patch.dict(os.environ, ARDIFF_BACKEND="cpu"):
        rival, machine = _Side(opponent), _machine(row)

        def turn() -> None:
            rival.time()
            if machine is not None:
                machine.time()
            ours()

        began = time.perf_counter()
        turn()
        seconds = 2 * (time.perf_counter() - began)
        turns = max(int(_BUDGET / seconds), min(_FEW, int(_SLOW / seconds)))
        benchmark.group = f"{row.op} {row.shape}, threads={row.threads}"
        benchmark.pedantic(ours, setup=turn, rounds=max(_LEAST, min(_MOST, turns)))
    own, other = benchmark.stats.stats.min, rival.least * row.opponent_scale
    info = benchmark.extra_info
    info.update(op=row.op, shape=row.shape, threads=row.threads, opponent=row.opponent)
    info.update(seconds=own, opponent_seconds=other, ratio=other / own, bar=row.bar)
    if machine is not None:
        info.update(share=machine.least * _scale(row) / own, share_bar=row.share_bar)
        info["share_of"] = "GEMM" if row.flops else "copy"


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Side:
    def __init__(self, *calls: Callable[[], object]) -> None:
        self.calls, self.least = calls, float("inf")

    def time(self) -> None:
        """One timing of the second of two calls; of several ways to do the same, the fastest counts."""
        for call in self.calls:
            call()
            began = time.perf_counter()
            call()
            self.least = min(self.least, time.perf_counter() - began)


def _machine(row: Row) -> _Side | None:
    if row.flops:
        a, b = torch.randn(2, _GEMM, _GEMM)
        product = torch.empty_like(a)
        return _Side(lambda: torch.mm(a, b, out=product))
    if not row.moved_bytes:
        return None
    source = torch.ones(row.moved_bytes // 8)
    target = torch.zeros_like(source)
    return _Side(lambda: target.copy_(source), lambda: _memmove(target, source, row.threads))


def _scale(row: Row) -> float:
    """The reference product has 2 n^3 FLOPs, the reference copy exactly the bytes of the row."""
    return row.flops / (2 * _GEMM**3) if row.flops else 1.0


def _memmove(target: torch.Tensor, source: torch.Tensor, threads: int) -> None:
    """The C library's copy by `threads` threads: its streaming stores beat Tensor.copy_ beyond the caches."""
    size = source.numel() * source.element_size()
    cuts = [size * i // threads for i in range(threads + 1)]
    jobs = [
        Thread(target=ctypes.memmove, args=(target.data_ptr() + a, source.data_ptr() + a, b - a))
        for a, b in zip(cuts[1:], cuts[2:], strict=False)
    ]
    for job in jobs:
        job.start()
    ctypes.memmove(target.data_ptr(), source.data_ptr(), cuts[1])
    for job in jobs:
        job.join()


def _keep_freed_memory() -> None:
    """Lets malloc reuse large blocks instead of handing them back: or every result would be mapped and
    zeroed by the kernel page by page within the timing, on either side, and hide what the ops take."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
