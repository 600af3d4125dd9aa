# SPDX-License-Identifier: Apache-2.0
"""Passes over static buffers, recorded once per shape and repeated: a few hundred kernels for one launch.

A pass over a single frame is a millisecond of work in some four hundred kernels, and starting those one by
one from Python takes longer than running them. A CUDA graph starts them all at once. What a graph holds is
fixed: addresses, shapes, grids. So a batch is padded to one of few shapes (engine.cuda.shapes), copied to the
buffers of that shape (engine.cuda.buffers), and the pass runs over those: the first time as it is, which
loads kernels and allocates workspaces; the second time recorded, unless another thread runs it, where it is
the first time again; from then on repeated. Without a recorder (on the CPU, or turned off) passes run as they
are, over their own tensors.

Graphs are dropped when memory that they hold the addresses of is replaced, the least used first when there
are too many, and all of them for good when a recording fails: passes then run as they are, and the counts
say why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ardiff_engine.device import DEVICE_WIDE_CALLS
from ardiff_engine.engine.batch import Batch, on_device
from ardiff_engine.engine.cuda.buffers import PassBuffers
from ardiff_engine.engine.cuda.shapes import (
    PaddedLayout,
    PassShape,
    condition_tables,
    pad_layout,
    with_pages_of,
)
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.host_copy import HostCopy
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ops.cuda_launch import error_bits

MOST_SHAPES = 16
LAYOUTS_KEPT = 16
FIRST_OF_ITS_SHAPE = "first pass of its shape in its thread"

Run = Callable[[], None]
Forward = Callable[[Batch], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
"""A batch to latents [Y, C] at their next level, whether they are finite [U], and their history."""


class GraphRecorder(Protocol):
    """What can record a pass: `CudaGraphs` on a GPU."""

    def warm_up(self, run: Run) -> None:
        """Run it where it will be recorded: nothing may be loaded for the first time while recording."""

    def record(self, run: Run) -> Run:
        """Record it without running it; what is returned runs it on the current stream."""

    def wait(self) -> None:
        """Return when nothing that was recorded is running."""


class RunsAgain:
    """Records nothing: what is repeated runs once more. For tests on a CPU."""

    def warm_up(self, run: Run) -> None:
        run()

    def record(self, run: Run) -> Run:
        return run

    def wait(self) -> None:
        return


class CudaGraphs:
    """CUDA graphs of one device, which share one pool of memory: they never run side by side.

    Not yet run on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Streams come from pools that hand them out in turn: without a priority of its own, one day a decoder
        # would get this one, and its work would be recorded. What is recorded also goes before decoding.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> None:
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            run()
        here.wait_stream(self._stream)

    def record(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        failed: BaseException | None = None
        try:
            # The stream: a capture that fails leaves its own behind as the current one, and what this thread
            # starts next would overtake what the others do.
            # thread_local: a decoder in another thread may allocate or wait meanwhile, which is none of this
            # recording's business and would end it under the default mode.
            with (
                DEVICE_WIDE_CALLS,
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    run()
                except BaseException as error:
                    failed = error
                    raise
        except BaseException as error:
            # The end of a capture that was broken raises an error of its own, which says nothing, and would
            # stand in for an interrupt as well.
            raise (failed or error) from None
        finally:
            del failed  # it refers to this frame, and the frame to the graph
        return graph.replay

    def wait(self) -> None:
        with DEVICE_WIDE_CALLS:
            torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class GraphCounts:
    """captured, replays, eager: graphs recorded, passes that repeated one, passes that ran as they are;
    reason: why the last of those did."""

    captured: int = 0
    replays: int = 0
    eager: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """latents: float32 [U, L, C]. history: as in Batch.

    findings: on their way to the host: finite, bool [U], and, of kernels that cannot raise, the error bits of
    their device (ops.cuda_launch)."""

    latents: torch.Tensor
    findings: HostCopy
    history: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    """warm: has `done` in threads that have run this pass. Libraries keep handles and workspaces by thread,
    and none may be made while recording."""

    buffers: PassBuffers
    warm: threading.local = field(default_factory=threading.local)
    replay: Run | None = None


class _Kept:
    """Padded layouts by the objects that they were made from, the last LAYOUTS_KEPT of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], tuple[tuple[object, ...], PaddedLayout]] = OrderedDict()

    def get(self, sources: tuple[object, ...]) -> PaddedLayout | None:
        key = tuple(map(id, sources))
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[1]

    def add(self, sources: tuple[object, ...], layout: PaddedLayout) -> None:
        # With its sources, whose ids would otherwise come to stand for other objects.
        self._kept[tuple(map(id, sources))] = sources, layout
        if len(self._kept) > LAYOUTS_KEPT:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()


class PassGraphs:
    """Runs a pass over the static buffers of its shape, or, for the stated reason, as it is.

    recorder: None: there are no graphs.
    """

    def __init__(
        self,
        forward: Forward,
        schedules: Schedules,
        spec: ModelSpec,
        recorder: GraphRecorder | None,
        reason: str | None = None,
        most_shapes: int = MOST_SHAPES,
    ) -> None:
        self._forward = forward
        self._schedules = schedules
        self._spec = spec
        self._recorder = recorder
        self._reason = reason
        self._most_shapes = most_shapes
        self._entries: OrderedDict[PassShape, _Entry] = OrderedDict()
        self._layouts = _Kept()
        self._views = _Kept()
        self._held: tuple[object, ...] = ()
        self.counts = GraphCounts()

    def run(self, batch: Batch) -> Computed:
        """The pass over this batch, whose index tensors are in host memory and whose latents are not."""
        if self._recorder is None:
            return self._as_it_is(batch, self._reason)
        if batch.cells.layers:
            return self._as_it_is(batch, "a view for each layer")
        if batch.noise is not None:
            return self._as_it_is(batch, "noise that is given for each step")
        self._drop_stale(batch)
        layout = self._padded(batch)
        entry = self._entry(layout, batch)
        buffers = entry.buffers
        buffers.load(layout, batch)
        if not self._run(entry, self._recorder):
            return self._as_it_is(batch, self._reason)
        # Copied: the next pass of this shape writes over the buffers, whoever still needs what this one left.
        found = error_bits(batch.cells.k_pages.device).clone()
        findings = HostCopy(layout.updates.taken(buffers.finite), found)
        history = None
        if batch.history is not None:
            history = torch.stack([layout.moved.taken(plane) for plane in buffers.history])
        return Computed(layout.moved.taken(buffers.latents), findings, history)

    def clear(self) -> None:
        """Drop all graphs and buffers: workspace that can be built again."""
        if self._recorder is not None and self._entries:
            self._recorder.wait()
        self._entries.clear()
        self._layouts.clear()
        self._views.clear()

    # --- private

    def _as_it_is(self, batch: Batch, reason: str | None) -> Computed:
        device = batch.cells.k_pages.device
        latents, finite, history = self._forward(batch if device.type == "cpu" else on_device(batch, device))
        self._count(eager=1, reason=reason)
        return Computed(latents, HostCopy(finite, error_bits(device).clone()), history)

    def _run(self, entry: _Entry, recorder: GraphRecorder) -> bool:
        """False if it cannot be recorded, and nothing was run."""
        if entry.replay is None and not hasattr(entry.warm, "done"):
            recorder.warm_up(lambda: self._run_over(entry.buffers))
            entry.warm.done = True
            self._count(eager=1, reason=FIRST_OF_ITS_SHAPE)
            return True
        if entry.replay is None:
            try:
                entry.replay = recorder.record(lambda: self._run_over(entry.buffers))
            except Exception as error:
                # Not again: whatever cannot be recorded now cannot be recorded in the next shape either.
                self._reason = f"recording failed: {type(error).__name__}: {error}"
                self.clear()
                self._recorder = None
                return False
            self._count(captured=1)
        entry.replay()
        self._count(replays=1)
        return True

    def _run_over(self, buffers: PassBuffers) -> None:
        buffers.store(*self._forward(buffers.batch))

    def _count(self, captured: int = 0, replays: int = 0, eager: int = 0, reason: str | None = None) -> None:
        now = self.counts
        self.counts = GraphCounts(
            now.captured + captured, now.replays + replays, now.eager + eager, reason or now.reason
        )

    def _drop_stale(self, batch: Batch) -> None:
        """Tables of other solvers, or another pool, lie elsewhere; a graph would read the old ones."""
        schedules, cells = self._schedules, batch.cells
        held = (schedules.tables, schedules.coefficients, cells.k_pages, cells.v_pages)
        if len(held) != len(self._held) or any(a is not b for a, b in zip(held, self._held, strict=True)):
            self.clear()
            self._held = held

    def _padded(self, batch: Batch) -> PaddedLayout:
        """Batches of one Layout share its tensors: it is padded once. Layouts that differ in their pages
        alone, as those of a window that slides, share all others: these are padded once for all of them."""
        cells, table, noisy = batch.cells, batch.cells.table, batch.keys is not None
        planes = 0 if batch.history is None else len(batch.history)
        views = (*table.offsets, batch.branch_cells, noisy, planes)
        own = (*views, table.pages, cells.slots, cells.positions)
        for seen in condition_tables(batch):
            views = (*views, *seen.offsets)
            own = (*own, seen.pages)
        layout = self._layouts.get(own)
        if layout is None:
            like = self._views.get(views)
            if like is None:
                like = pad_layout(batch, self._spec)
                self._views.add(views, like)
            layout = with_pages_of(like, batch)
            self._layouts.add(own, layout)
        return layout

    def _entry(self, layout: PaddedLayout, batch: Batch) -> _Entry:
        entry = self._entries.get(layout.shape)
        if entry is None:
            if len(self._entries) >= self._most_shapes:
                if self._recorder is not None:
                    self._recorder.wait()
                self._entries.popitem(last=False)
            entry = self._entries[layout.shape] = _Entry(PassBuffers(layout, batch, self._spec))
        self._entries.move_to_end(layout.shape)
        return entry


def graphs_for(
    forward: Forward, schedules: Schedules, spec: ModelSpec, device: torch.device, cuda_graphs: bool | None
) -> PassGraphs:
    """How an engine on this device runs its passes; cuda_graphs: as in Engine."""
    if spec.reads_back:
        return PassGraphs(forward, schedules, spec, None, "the network reads values back from the device")
    if cuda_graphs is False or (cuda_graphs is None and device.type != "cuda"):
        off = "turned off: cuda_graphs=False" if device.type == "cuda" else f"no CUDA graphs on {device.type}"
        return PassGraphs(forward, schedules, spec, None, off)
    return PassGraphs(forward, schedules, spec, CudaGraphs(device) if device.type == "cuda" else RunsAgain())
