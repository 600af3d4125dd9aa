# SPDX-License-Identifier: Apache-2.0
"""Runs the network and the solver over packed cells, and keeps what goes wrong with the stream it belongs to.

A pass that raises serves many streams, and nobody can tell whose fault it was. So it is run again stream by
stream: every fed cell writes its K/V before anyone reads them, so running twice changes nothing, and a row's
result does not depend on its neighbours. Whoever breaks a pass of its own fails; the others go on as if it
had never been there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from ardiff_engine.device import DEVICE_WIDE_CALLS
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.tick import Tick
from ardiff_engine.engine.tick_graphs import Computed, EagerTicks, GraphCounts, TickGraphs
from ardiff_engine.engine.verdict import Verdict, parts_of
from ardiff_engine.errors import wrapped
from ardiff_engine.ranges import annotate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one pass: latents [U, L, C] of the frames that it moved, stream by stream, at their next level."""

    work: Work
    cells: int
    latents: torch.Tensor
    verdict: Verdict

    def parts(self) -> Iterator[tuple[Stream, Feed, torch.Tensor]]:
        """Every stream with its own latents."""
        counts = [len(feed.roster.updated) for _, feed in self.work]
        for (stream, feed), latents in zip(self.work, self.latents.split(counts), strict=True):
            yield stream, feed, latents


class Passes:
    """retried: passes run again. packing_, model_, solver_seconds: host time of the last `run`; for a tick
    that a graph repeats, the last two are 0."""

    def __init__(self, packer: Packer, tick: Tick, ticks: EagerTicks | TickGraphs) -> None:
        self._packer = packer
        self._tick = tick
        self._ticks = ticks
        self.retried = 0
        self.packing_seconds = 0.0

    def run(self, work: Work) -> list[Outcome]:
        """One pass, or where that fails one per stream. Who fails alone has an error and no outcome."""
        self.packing_seconds = self._tick.model_seconds = self._tick.solver_seconds = 0.0
        return self._run(work, may_free=True)

    @property
    def graphs(self) -> GraphCounts:
        return self._ticks.counts

    @property
    def model_seconds(self) -> float:
        return self._tick.model_seconds

    @property
    def solver_seconds(self) -> float:
        return self._tick.solver_seconds

    def free_workspace(self) -> None:
        self._packer.forget()
        self._ticks.clear()
        gc.collect()
        if torch.cuda.is_available():
            with DEVICE_WIDE_CALLS:
                torch.cuda.empty_cache()

    def tried_again(self, call: Callable[[], T]) -> T:
        """What `call` returns; where memory is short, workspace is freed and it is called once more."""
        try:
            return call()
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.free_workspace()
        return call()

    def _run(self, work: Work, may_free: bool) -> list[Outcome]:
        try:
            return [self._attempt(work)]
        except Exception as error:
            self.retried += 1
            if may_free and out_of_memory(error):
                self.free_workspace()
                return self._run(work, may_free=False)
            if len(work) == 1:
                work[0][0].fail(wrapped(error))
                return []
        return [outcome for one in work for outcome in self._run([one], may_free)]

    def _attempt(self, work: Work) -> Outcome:
        started = time.perf_counter()
        with annotate("ardiff.pack"):
            batch = self._packer.pack(work)
        self.packing_seconds += time.perf_counter() - started
        computed = self.compute(batch)
        verdict = Verdict(parts_of(work), computed.findings, batch.x.device)
        return Outcome(work, batch.x.shape[0], computed.latents, verdict)

    def compute(self, batch: Batch) -> Computed:
        """The latents of the frames that it moves [U, L, C], and what is known of them."""
        return self._ticks.run(batch)


def out_of_memory(error: Exception) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
