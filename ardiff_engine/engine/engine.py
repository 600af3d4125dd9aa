# SPDX-License-Identifier: Apache-2.0
"""Many streams, one model, one page pool: every `step()` is one pass over the cells of all that run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike
from typing import TypeVar

import torch

from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.engine import stream_edits
from ardiff_engine.engine.admission import admit, check_memory
from ardiff_engine.engine.batch import Packer
from ardiff_engine.engine.changes import STALL_SECONDS, Changes
from ardiff_engine.engine.conditions import condition_rows
from ardiff_engine.engine.deliveries import Deliveries
from ardiff_engine.engine.feed import Feed, Feeder
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.memory_plan import MemoryPlan, memory_plan, pages_for_share
from ardiff_engine.engine.passes import Outcome, Passes, out_of_memory
from ardiff_engine.engine.recorder import Recorder, TickRecord, stream_tick
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import Schedules
from ardiff_engine.engine.stats import EngineStats
from ardiff_engine.engine.steady_run import LEAST_PASSES, SteadyRun
from ardiff_engine.engine.stream import CleanFrame, Holdings, Stream
from ardiff_engine.engine.stream_pages import StreamPages
from ardiff_engine.engine.stream_register import StreamRegister
from ardiff_engine.engine.tick import Tick
from ardiff_engine.engine.tick_graphs import ticks_for
from ardiff_engine.engine.turns import longest_waiting_first, tokens_of, within_budget
from ardiff_engine.errors import (
    EngineBusyError,
    explain,
    wrapped,
)
from ardiff_engine.memory import MemoryPolicy, PagePool, RecomputedWindow
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.ranges import annotate

T = TypeVar("T")


class Engine:
    """Serves a model. Not tied to a thread: `step()` may be called from any; calls wait for each other.

    memory: RecomputedWindow(model's num_frames) if not given.
    max_pages: size of the page pool, allocated here: max_pages * layers * 2 * heads * page_rows * head_dim
        numbers; a fraction is a share of the memory that is free now.
    max_batch_tokens: tokens that one pass takes at most; streams then take turns, longest wait first, and one
        that needs more runs alone.
    max_waiting: videos that may wait for pages; beyond that, and by default, `submit` refuses.
    cuda_graphs: record ticks of equal shape once and repeat them; None: on CUDA. `stats()` says what was
        recorded. True on the CPU runs over the same padded buffers and records nothing, for tests.

    The model's weights are read when the engine is built (modulation table) and at every pass: after changing
    them, build a new engine.
    """

    def __init__(
        self,
        model: ARDiffusionTransformer,
        *,
        solver: Solver,
        memory: MemoryPolicy | None = None,
        max_pages: int | float = 1024,
        max_batch_tokens: int | None = None,
        max_waiting: int = 0,
        cuda_graphs: bool | None = None,
    ) -> None:
        self.model = model
        self.memory = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        check_memory(self.memory)
        self.lock = threading.RLock()
        self.changes = Changes()
        self.ticks = 0
        self._stepping = False
        self._max_batch_tokens = max_batch_tokens
        weight = model.x_embedder.weight
        self.device = weight.device
        if isinstance(max_pages, float):
            max_pages = pages_for_share(max_pages, model.spec, weight.element_size(), self.device)
        self.pool = PagePool.allocate(model.spec, max_pages, dtype=weight.dtype, device=self.device)
        self._schedules = Schedules(model, solver)
        self._packer = Packer(model, self.pool, self._schedules)
        tick = Tick(model, self._schedules)
        ticks = ticks_for(tick, self._schedules, model.spec, self.device, cuda_graphs)
        self._passes = Passes(self._packer, tick, ticks)
        self._deliveries = Deliveries(delay=1 if self.device.type == "cuda" else 0)
        self._delivered: list[Stream] = []
        self.register = StreamRegister(self.pool.manager, self._schedules, max_waiting)
        self._cells = self._updates = self._frames = 0
        self._seconds = self._planning_seconds = 0.0
        self._first_frame_seconds: float | None = None
        self._recorders: list[Recorder] = []
        self._run: SteadyRun | None = None

    @property
    def solver(self) -> Solver:
        return self._schedules.default.solver

    @staticmethod
    def memory_plan(
        model: ARDiffusionTransformer,
        *,
        solver: Solver,
        memory: MemoryPolicy | None = None,
        request: Request | None = None,
        streams: int = 1,
    ) -> MemoryPlan:
        """Weights, pages and workspace for `streams` videos at a time; print it. Nothing is allocated."""
        policy = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        return memory_plan(model, solver, policy, request or Request(), streams)

    def submit(self, request: Request) -> Stream:
        """Admit a video, or raise a typed error and change nothing. It runs from the next `step()` on.

        Where the pool cannot promise its pages now, it waits its turn, if `max_waiting` allows.
        """
        spec = self.model.spec
        policy = self.memory if request.memory is None else request.memory
        solver = self.solver if request.solver is None else request.solver
        self._schedules.check(solver)
        admission = admit(request, spec, policy, solver.num_steps)
        conditions = [condition_rows(self.model, request.condition)]
        if len(admission.weights) > 1:
            negative = request.negative_condition
            with torch.no_grad():
                null = self.model.null_context()[0]
            conditions.append(null if negative is None else condition_rows(self.model, negative))
        need = admission.need
        with self.lock:
            self.settle()
            self.register.reap()
            self.register.check_room(need.most)
            pages = StreamPages(len(conditions), need.context, need.frame, need.most)
            feeder = Feeder(admission.plan, policy, spec.cacheable)
            stream = self._add(
                request, feeder, policy, torch.stack(conditions), admission.weights, pages, solver
            )
            self.register.wait_for_pages(stream)
            self.register.start_waiting()
        self.changes.notify()
        return stream

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
                ran = self._step()
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
            graphs = self._passes.graphs
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
                ticks=self.ticks,
                cells=self._cells,
                updates=self._updates,
                frames=self._frames,
                seconds=self._seconds,
                planning_seconds=self._planning_seconds,
                cells_per_second=self._cells / self._seconds if self._seconds else 0.0,
                cells_per_tick=self._cells / self.ticks if self.ticks else 0.0,
                first_frame_seconds=self._first_frame_seconds,
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
            self._recorders.append(recorder)
        try:
            yield recorder
        finally:
            with self.lock:
                self._recorders.remove(recorder)
            recorder.write_chrome_trace(path)

    # --- for streams

    def settle(self) -> None:
        """End the run of steady passes, if there is one: every stream catches up."""
        with self.lock:
            run, self._run = self._run, None
            if run is not None:
                run.settle()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """The engine's lock, with nothing on its way to a reader: edits find streams as readers do."""
        with self.lock:
            self._deliver(0)
            if not self._stepping:
                self._finish_delivered()
            yield

    def condition(self, condition: torch.Tensor | int | None) -> torch.Tensor:
        return condition_rows(self.model, condition)

    def adopt(self, parent: Stream, request: Request) -> Stream:
        """A fork of `parent`: its place in the plan, its pages."""
        lease = self.pool.manager.lease(parent.pages.most)
        pages = parent.pages.fork(lease)
        solver = parent.schedule.solver
        stream = self._add(
            request, parent.feeder.copy(), parent.policy, parent.conditions, parent.weights, pages, solver
        )
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

    def _step(self) -> bool:
        if self._run is not None:
            if self._goes_on(self._run) and self._step_of(self._run):
                return True
            self.settle()
        started = time.perf_counter()
        with annotate("ardiff.plan"):
            self.register.reap()
            self.register.start_waiting()
            ended = sum(self.register.ended.values())
            work = self._turn()
        if not work:
            # Nothing to start: bring in what is on its way, for which readers may be waiting.
            self._deliver(0)
            if self._finish_delivered():
                return True
            # Whoever failed in its turn has given its pages back: one that waits for them may run next.
            return sum(self.register.ended.values()) > ended
        planned = time.perf_counter()
        outcomes = self._passes.run(work)
        computed = time.perf_counter()
        # First every stream gets what this pass computed, then callbacks run: one that cancels, fails or is
        # interrupted finds all streams at the same tick.
        moved = self._hand_over(outcomes)
        self.ticks += 1
        finished = time.perf_counter()
        self._seconds += finished - started
        self._planning_seconds += planned - started + finished - computed + self._passes.packing_seconds
        interrupt: BaseException | None = None
        for stream in moved:
            try:
                if not stream.done:
                    self._call_back(stream)
            except BaseException as error:
                # Not before the others had their callbacks: nobody would call those again.
                interrupt = interrupt or error
        self._finish_delivered()
        if self._recorders:
            self._record(work, started, planned)
        if interrupt is not None:
            raise interrupt
        if len(moved) == len(work):
            self._begin_run(moved)
        return True

    def _begin_run(self, streams: list[Stream]) -> None:
        """Leave the next passes to a run, if they change nothing but the levels of these streams."""
        ahead = min(stream.passes_ahead for stream in streams)
        if ahead < LEAST_PASSES or self._recorders:
            return
        # One that waits for its turn or its reader may run next.
        if sum(stream.state == "running" for stream in self.register.alive()) > len(streams):
            return
        began = time.perf_counter()
        try:
            work = [(stream, stream.feeder.next()) for stream in streams]
            run = SteadyRun(self._packer, work, ahead, self.register.version)
        except Exception:
            # Whatever it is, the next pass meets it too, and knows whose fault it is.
            return
        run.begin()
        self._run = run
        self._planning_seconds += time.perf_counter() - began
        self._seconds += time.perf_counter() - began

    def _goes_on(self, run: SteadyRun) -> bool:
        register = self.register
        return not (run.over or register.to_reap or run.version != register.version or self._recorders)

    def _step_of(self, run: SteadyRun) -> bool:
        """The next pass of the run. False if it failed and changed nothing: the streams do it themselves."""
        started = time.perf_counter()
        try:
            with annotate("ardiff.pack"):
                batch = run.batch()
            packed = time.perf_counter()
            result = self._passes.compute(batch)
        except Exception:
            return False
        computed = time.perf_counter()
        verdict = run.verdict(result.findings)
        if self._deliveries.delay == 0 and not verdict.good:
            return False
        # The collector may have ended a stream meanwhile, and the run with it.
        if self._run is not run:
            return False
        run.accept(result.latents)
        self.ticks += 1
        self._cells += batch.x.shape[0]
        self._updates += len(result.latents)
        if self._deliveries.delay:
            self._deliveries.begin([verdict])
            self._deliver(self._deliveries.delay)
            self._finish_delivered()
        finished = time.perf_counter()
        self._seconds += finished - started
        self._planning_seconds += packed - started + finished - computed
        return True

    def _record(self, work: Work, started: float, planned: float) -> None:
        fed = {stream.number: stream_tick(stream, feed) for stream, feed in work}
        held = [stream_tick(s, None) for s in self.register.alive() if s.number not in fed and s.pages.held]
        manager, passes = self.pool.manager, self._passes
        record = TickRecord(
            index=self.ticks - 1,
            began=started,
            ended=time.perf_counter(),
            plan_seconds=planned - started,
            pack_seconds=passes.packing_seconds,
            model_seconds=passes.model_seconds,
            solver_seconds=passes.solver_seconds,
            streams=(*fed.values(), *held),
            pages_held=manager.held,
            pages_total=manager.total,
        )
        for recorder in self._recorders:
            recorder.add(record)

    def _turn(self) -> Work:
        """What the streams of this pass feed, their pages taken. A stream that cannot say so fails alone."""
        runnable = [s for s in self.register.alive() if s.runnable and not self._ends(s)]
        if self._max_batch_tokens is not None:
            runnable = self._next_in_turn(runnable, self._max_batch_tokens)
        # In the order of submission: streams that go on together keep the layout of their last pass.
        work: Work = []
        for stream in runnable:
            try:
                feed = self._tried_again(stream.feeder.next)
                self._tried_again(partial(stream.prepare, feed))
            except Exception as error:
                stream.fail(wrapped(error))
                continue
            work.append((stream, feed))
        # The collector may end a forgotten reader at any line, here too; packing one that has no latents any
        # more would break the pass for all.
        return [(stream, feed) for stream, feed in work if not stream.done]

    def _next_in_turn(self, streams: list[Stream], budget: int) -> list[Stream]:
        """Those that share the next pass, in the order of submission."""
        spec = self.model.spec
        planned: list[Stream] = []
        costs: list[int] = []
        for stream in longest_waiting_first(streams):
            try:
                feed = self._tried_again(stream.feeder.next)
            except Exception as error:
                stream.fail(wrapped(error))
                continue
            planned.append(stream)
            costs.append(tokens_of(stream, feed, spec.tokens_per_frame, spec.context_tokens))
        turn = [planned[index] for index in within_budget(costs, budget)]
        for stream in turn:
            self.register.queue_up(stream)
        return sorted(turn, key=lambda stream: stream.number)

    def _hand_over(self, outcomes: list[Outcome]) -> list[Stream]:
        """Give every stream what was computed for it: those that went on. All that can fail comes before
        anything changes: a stream moved on by half would go on as another video.
        """
        moves: list[tuple[Stream, Feed, torch.Tensor, list[CleanFrame]]] = []
        verdicts = [outcome.verdict for outcome in outcomes]
        self._deliveries.check(verdicts)
        for outcome in outcomes:
            self._cells += outcome.cells
            self._updates += len(outcome.latents)
            for stream, feed, own in outcome.parts():
                if stream.done:
                    continue
                try:
                    clean = self._tried_again(partial(stream.clean_copies, feed, own))
                except Exception as error:
                    stream.fail(wrapped(error))
                else:
                    moves.append((stream, feed, own, clean))
        moved: list[Stream] = []
        self._deliveries.begin(verdicts)
        for stream, feed, own, clean in moves:
            if stream.done:
                continue
            stream.take_over(feed, own, clean)
            self._deliveries.add(stream, clean)
            moved.append(stream)
        self._deliver(self._deliveries.delay)
        return moved

    def _deliver(self, on_their_way: int) -> None:
        """Hand frames to their readers once it is known that they are good."""
        for stream, clean in self._deliveries.arrived(on_their_way):
            stream.deliver(clean)
            self._delivered.append(stream)
            self._frames += len(clean)
            if clean and self._first_frame_seconds is None:
                self._first_frame_seconds = stream.first_frame_seconds

    def _ends(self, stream: Stream) -> bool:
        """Whether only the delivery of its last frames is left."""
        return stream.passes_under_way > 0 and stream.feeder.done

    def _finish_delivered(self) -> bool:
        """End videos whose last frames were delivered; whether anything was delivered at all."""
        delivered = bool(self._delivered)
        for stream in self._delivered:
            self._finish_if_done(stream)
        self._delivered.clear()
        return delivered

    def _tried_again(self, call: Callable[[], T]) -> T:
        """What `call` returns; where memory is short, workspace is freed and it is called once more."""
        try:
            return call()
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._passes.free_workspace()
        return call()

    def _finish_if_done(self, stream: Stream) -> None:
        # One that takes part in a run has passes ahead.
        if stream.in_run or stream.done or not stream.feeder.done or self._ends(stream):
            return
        if stream.then is None:
            stream.finish()
            return
        try:
            stream_edits.start_extension(stream)
        except Exception as error:
            stream.fail(wrapped(error))

    def _call_back(self, stream: Stream) -> None:
        if stream.request.on_step is None:
            return
        try:
            stream.request.on_step(stream)
        except Exception as error:
            stream.fail(wrapped(error))

    def _add(
        self,
        request: Request,
        feeder: Feeder,
        policy: MemoryPolicy,
        conditions: torch.Tensor,
        weights: tuple[float, ...],
        pages: StreamPages,
        solver: Solver,
    ) -> Stream:
        holdings = Holdings(pages, self._schedules.use(solver))
        try:
            stream = Stream(
                self, self.register.submitted, request, feeder, policy, conditions, weights, holdings
            )
        except BaseException:
            pages.close()
            self._schedules.leave(holdings.schedule)
            raise
        self.register.add(stream)
        return stream
