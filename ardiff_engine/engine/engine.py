# SPDX-License-Identifier: Apache-2.0
"""Many streams, one model, one page pool: every `step()` is one pass over the cells of all that run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from os import PathLike

import torch

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.engine.admission import admit, check_memory
from ardiff_engine.engine.batch import Packer
from ardiff_engine.engine.changes import STALL_SECONDS, Changes
from ardiff_engine.engine.deliveries import Deliveries
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.memory_plan import MemoryPlan, memory_plan, pages_for_share
from ardiff_engine.engine.passes import Passes
from ardiff_engine.engine.recorder import Recorder
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import Schedules, Tracks, tracks_of
from ardiff_engine.engine.stats import EngineStats
from ardiff_engine.engine.steps import Steps
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_pages import StreamPages
from ardiff_engine.engine.stream_register import Holdings, StreamRegister
from ardiff_engine.engine.tick import Tick
from ardiff_engine.engine.tick_graphs import ticks_for
from ardiff_engine.engine.turns import Turns
from ardiff_engine.errors import EngineBusyError, explain
from ardiff_engine.memory import MemoryPolicy, PagePool, RecomputedWindow
from ardiff_engine.models.protocol import VideoModel


class Engine:
    """Serves a model. Not tied to a thread: `step()` may be called from any; calls wait for each other.

    solver: one, or a tuple with one for each track of the plans.
    memory: RecomputedWindow(model's num_frames) if not given.
    max_pages: size of the page pool, allocated here: max_pages * layers * 2 * heads * page_rows * head_dim
        numbers; a fraction is a share of the memory that is free now.
    max_batch_tokens: tokens that one pass takes at most; streams then take turns, longest wait first, and one
        that needs more runs alone.
    max_waiting: videos that may wait for pages; beyond that, and by default, `submit` refuses.
    cuda_graphs: record ticks of equal shape once and repeat them; None: on CUDA. `stats()` says what was
        recorded. True on the CPU runs over the same padded buffers and records nothing, for tests.

    The engine freezes its model: weights are packed and tables computed when it is built. After changing
    weights, hooks or layers, build a new engine.
    """

    @ordinary_mode()
    def __init__(
        self,
        model: VideoModel,
        *,
        solver: Tracks,
        memory: MemoryPolicy | None = None,
        max_pages: int | float = 1024,
        max_batch_tokens: int | None = None,
        max_waiting: int = 0,
        cuda_graphs: bool | None = None,
    ) -> None:
        model.freeze()
        self.model = model
        self.memory = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        check_memory(self.memory)
        self.lock = threading.RLock()
        self.changes = Changes()
        self._stepping = False
        self.device = model.device
        if isinstance(max_pages, float):
            max_pages = pages_for_share(max_pages, model.spec, model.dtype.itemsize, self.device)
        self.pool = PagePool.allocate(model.spec, max_pages, dtype=model.dtype, device=self.device)
        self._schedules = Schedules(model, solver)
        self._packer = Packer(model, self.pool, self._schedules)
        tick = Tick(model, self._schedules)
        ticks = ticks_for(tick, self._schedules, model.spec, self.device, cuda_graphs)
        self._passes = Passes(self._packer, tick, ticks)
        self.register = StreamRegister(self.pool.manager, max_waiting)
        deliveries = Deliveries(delay=1 if self.device.type == "cuda" else 0)
        turns = Turns(model.spec, self.register, self._passes, max_batch_tokens)
        self._steps = Steps(self.register, self.pool.manager, self._packer, self._passes, turns, deliveries)

    def __repr__(self) -> str:
        # Without the lock, so that a debugger may show it at any time.
        pages = self.pool.manager
        return (
            f"<Engine on {self.device}: {len(self.register.alive())} streams, "
            f"{pages.held} of {pages.total} pages held>"
        )

    @property
    def ticks(self) -> int:
        """Passes so far."""
        return self._steps.ticks

    @property
    def solver(self) -> Tracks:
        return self._schedules.default.solver

    @staticmethod
    def memory_plan(
        model: VideoModel,
        *,
        solver: Tracks,
        memory: MemoryPolicy | None = None,
        request: Request | None = None,
        streams: int = 1,
    ) -> MemoryPlan:
        """Weights, pages and workspace for `streams` videos at a time; print it. Nothing is allocated."""
        policy = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        return memory_plan(model, solver, policy, request or Request(), streams)

    @ordinary_mode()
    def submit(self, request: Request) -> Stream:
        """Admit a video, or raise a typed error and change nothing. It runs from the next `step()` on.

        Where the pool cannot promise its pages now, it waits its turn, if `max_waiting` allows.
        """
        spec = self.model.spec
        policy = self.memory if request.memory is None else request.memory
        solver = self.solver if request.solver is None else request.solver
        steps = tuple(own.num_steps for own in tracks_of(solver))
        admission = admit(request, spec, policy, steps)
        conditions = [self.model.condition(request.condition)]
        if len(admission.weights) > 1:
            negative = request.negative_condition
            own = self.model.null_condition() if negative is None else self.model.condition(negative)
            conditions.append(own)
        need = admission.need
        with self.lock:
            self.settle()
            self.register.reap()
            self.register.check_room(need.most)
            pages = StreamPages(len(conditions), need.context, need.frame, need.most)
            feeder = Feeder(admission.plan, policy, spec)
            stream = self._add(
                request, feeder, policy, torch.stack(conditions), admission.weights, pages, solver
            )
            self.register.wait_for_pages(stream)
            self.register.start_waiting()
        self.changes.notify()
        return stream

    @ordinary_mode()
    def step(self) -> bool:
        """One pass over the streams whose turn it is; False if there was none that can run.

        A stream that cannot go on fails alone: its error is raised where it is read.
        """
        with self.lock:
            if self._stepping:
                raise EngineBusyError(
                    explain(
                        "a step inside a step",
                        got="step(), result() or iteration in a callback",
                        expected="callbacks that only look, cancel, edit or submit",
                        fix="Run other streams outside of on_step.",
                    )
                )
            self._stepping = True
            ran = True
            try:
                ran = self._steps.step()
            finally:
                self._stepping = False
                # Only if something happened: readers with nothing to run would wake each other for ever.
                if ran:
                    self.changes.notify()
            return ran

    def stats(self) -> EngineStats:
        with self.lock:
            self.register.reap()
            manager, streams, ended = self.pool.manager, self.register.alive(), self.register.ended
            graphs, steps = self._passes.graphs, self._steps
            count = {
                state: sum(s.state == state for s in streams) for state in ("running", "waiting", "suspended")
            }
            return EngineStats(
                streams_running=count["running"],
                streams_waiting=count["waiting"],
                streams_suspended=count["suspended"],
                streams_finished=ended["finished"],
                streams_cancelled=ended["cancelled"],
                streams_failed=ended["failed"],
                pages_free=manager.free,
                pages_held=manager.held,
                pages_promised=manager.total - manager.unpromised,
                pages_total=manager.total,
                ticks=steps.ticks,
                cells=steps.cells,
                updates=steps.updates,
                frames=steps.frames,
                seconds=steps.seconds,
                planning_seconds=steps.planning_seconds,
                cells_per_second=steps.cells / steps.seconds if steps.seconds else 0.0,
                cells_per_tick=steps.cells / steps.ticks if steps.ticks else 0.0,
                first_frame_seconds=steps.first_frame_seconds,
                passes_retried=self._passes.retried,
                exact=all(stream.exact for stream in streams),
                graphs_captured=graphs.captured,
                graph_replays=graphs.replays,
                eager_ticks=graphs.eager,
                eager_reason=graphs.reason,
            )

    @contextlib.contextmanager
    def trace(self, path: str | PathLike[str]) -> Iterator[Recorder]:
        """Record every pass until the block ends, also by an error; then write a Chrome trace to `path`."""
        recorder = Recorder()
        with self.lock:
            self._steps.recorders.append(recorder)
        try:
            yield recorder
        finally:
            with self.lock:
                self._steps.recorders.remove(recorder)
            recorder.write_chrome_trace(path)

    # --- for streams

    def settle(self) -> None:
        """End the run of steady passes, if there is one: every stream catches up."""
        with self.lock:
            self._steps.settle()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """The engine's lock, with nothing on its way to a reader: edits find streams as readers do."""
        with ordinary_mode(), self.lock:
            self._steps.deliver(0)
            if not self._stepping:
                self._steps.finish_delivered()
            yield

    def condition(self, condition: torch.Tensor | int | None) -> torch.Tensor:
        return self.model.condition(condition)

    def adopt(self, parent: Stream, request: Request) -> Stream:
        """A fork of `parent`: its place in the plan, its pages."""
        lease = self.pool.manager.lease(parent.pages.most)
        try:
            pages = parent.pages.fork(lease)
            feeder, solver = parent.feeder.copy(), parent.schedule.solver
            stream = self._add(
                request, feeder, parent.policy, parent.conditions, parent.weights, pages, solver
            )
        except BaseException:
            lease.close()
            raise
        stream.state = "running"
        return stream

    def leave(self, stream: Stream) -> None:
        """Cancel without waiting for a pass of another thread; then it takes effect before the next one.

        The collector may call this in a thread whose locks others need: waiting here could be for ever.
        """
        if self.lock.acquire(blocking=False):
            try:
                stream.cancel()
            finally:
                self.lock.release()
        else:
            self.register.leave_later(stream)
            self.changes.notify()

    def stalled(self, stream: Stream) -> EngineBusyError:
        """What a reader raises when nothing has been able to run for too long."""
        with self.lock:
            paused = [s.number for s in self.register.alive() if s.state == "running" and s is not stream]
        return EngineBusyError(
            explain(
                f"reading stream {stream.number}, which is {stream.state}",
                got=f"nothing to run for {STALL_SECONDS:.0f} s; streams {paused} wait for their readers",
                expected="a stream that can go on",
                fix="Read or cancel the others, or resume this one.",
            )
        )

    # --- private

    def _add(
        self,
        request: Request,
        feeder: Feeder,
        policy: MemoryPolicy,
        conditions: torch.Tensor,
        weights: tuple[float, ...],
        pages: StreamPages,
        solver: Tracks,
    ) -> Stream:
        holdings = Holdings(pages, self._schedules.use(solver))
        try:
            stream = Stream(
                self, self.register.submitted, request, feeder, policy, conditions, weights, holdings
            )
        except BaseException:
            pages.close()
            holdings.returned = True
            holdings.schedule.users -= 1
            raise
        self.register.add(stream)
        return stream
