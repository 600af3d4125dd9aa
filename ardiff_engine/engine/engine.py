# SPDX-License-Identifier: Apache-2.0
"""Many streams, one model, one page pool: every pass serves the cells of all that run."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from os import PathLike
from typing import TypeVar

import torch

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.arguments import instance
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine.admission import admit, check_memory, check_model, check_rule
from ardiff_engine.engine.batch import Packer
from ardiff_engine.engine.condition_store import ConditionStore, condition_keys
from ardiff_engine.engine.cuda.graphs import graphs_for
from ardiff_engine.engine.decoding import check_codec, decoder_for
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.frame_inputs import FrameInputs
from ardiff_engine.engine.inbox import Inbox
from ardiff_engine.engine.memory_plan import memory_plan, pages_for_share
from ardiff_engine.engine.reader import Changes, Outbox
from ardiff_engine.engine.report import engine_stats, pass_records
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.results import Results
from ardiff_engine.engine.runner import Forward, Runner
from ardiff_engine.engine.scheduler import Scheduler
from ardiff_engine.engine.schedules import Schedules, Tracks, tracks_of
from ardiff_engine.engine.starting_noise import StartingNoise, check_noise, given_frames
from ardiff_engine.engine.state import StreamState
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_edits import Editor
from ardiff_engine.engine.stream_pages import StreamPages
from ardiff_engine.errors import EngineBusyError, wrapped
from ardiff_engine.memory import MemoryPolicy, PagePool, RecomputedWindow, rows_of_pages
from ardiff_engine.models.agreement import check_spec, checked_condition
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.observe.recorder import Recorder
from ardiff_engine.observe.stats import EngineStats
from ardiff_engine.plan import Rule

T = TypeVar("T")

PASSES = 8
"""Passes that a step runs at most, where nothing needs a look between them."""


class Engine:
    """Serves a model. Any thread may call it: steps wait for each other, and everything else is done between
    two passes, by the thread that runs them if there is one.

    solver: one, or a tuple with one for each track of the plans.
    memory: RecomputedWindow(model's num_frames) if not given.
    plan: a rule such as plan.blocks(3), for requests that name neither plan nor lag.
    codec: makes pictures of clean frames as they come, for `Stream.pictures`; its state is counted at submit.
    max_pages: size of the page pool, allocated here: max_pages * layers * 2 * heads * page_rows * head_dim
        numbers; a fraction is a share of the memory that is free now.
    page_rows: of K/V in a page; by default those that pad a frame of the trained size least. Frames of other
        sizes take whole pages too.
    max_batch_tokens: tokens of one pass; streams take turns, longest wait first; what needs more runs alone.
    max_waiting: videos that may wait for pages; beyond that, and by default, `submit` refuses.
    cuda_graphs: record passes of equal shape once and repeat them; None: on CUDA. True on the CPU runs over
        the same padded buffers and records nothing, for tests.

    The engine freezes its model. After changing weights, hooks or layers, build a new engine.
    """

    @ordinary_mode()
    def __init__(
        self,
        model: VideoModel,
        *,
        solver: Tracks,
        memory: MemoryPolicy | None = None,
        plan: Rule | None = None,
        codec: Codec | None = None,
        max_pages: int | float = 1024,
        page_rows: int | None = None,
        max_batch_tokens: int | None = None,
        max_waiting: int = 0,
        cuda_graphs: bool | None = None,
    ) -> None:
        check_model(model)
        check_spec(model.spec)
        model.freeze()
        self.model = model
        self.memory = memory if memory is not None else RecomputedWindow(model.spec.num_frames)
        check_memory(self.memory)
        check_rule(plan)
        self.plan = plan
        self.codec = check_codec(codec, model)
        self.device = model.device
        rows = rows_of_pages(model.spec, page_rows)
        if isinstance(max_pages, float):
            max_pages = pages_for_share(max_pages, model.spec, rows, model.dtype.itemsize, self.device)
        self.pool = PagePool.allocate(model.spec, max_pages, rows, dtype=model.dtype, device=self.device)
        self.changes = Changes()
        self.inbox = Inbox(self.changes)
        self._conditions = ConditionStore(sum(model.spec.condition.pages(self.pool.page_rows)))
        self._schedules = Schedules(model, solver)
        forward = Forward(model, self._schedules)
        graphs = graphs_for(forward, self._schedules, model.spec, self.device, cuda_graphs)
        self._runner = Runner(Packer(model, self.pool, self._schedules), forward, graphs, self.inbox.__bool__)
        again = self._runner.tried_again
        self._scheduler = Scheduler(model.spec, self.pool.manager, again, max_waiting, max_batch_tokens)
        self._results = Results(self._scheduler, self._runner, self.device)
        self._editor = Editor(model, self.pool, self._schedules, self._scheduler)
        self._lock = threading.RLock()
        self._stepping = False
        self._busy = False  # within a pass or an edit: what is asked for in this thread has to wait
        self._thread: threading.Thread | None = None
        # Handles of streams with callbacks. Only those that a pass may call are kept: one that is suspended,
        # or waits for its reader, is out of anybody's reach once its last reference is dropped.
        self._watched: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self._kept: list[Stream] = []
        self._recorders: list[Recorder] = []
        self._seconds = self._planning_seconds = 0.0

    def __repr__(self) -> str:
        # Without the lock, so that a debugger may show it at any time.
        pages, streams = self.pool.manager, len(self._scheduler.streams)
        return f"<Engine on {self.device}: {streams} streams, {pages.held} of {pages.total} pages held>"

    @property
    def solver(self) -> Tracks:
        return self._schedules.default.solver

    memory_plan = staticmethod(memory_plan)

    @ordinary_mode()
    def submit(self, request: Request) -> Stream:
        """Admit a video, or raise a typed error and change nothing. It runs from the next pass on.

        Where the pool cannot promise its pages now, it waits its turn, if `max_waiting` allows.
        """
        spec, request = self.model.spec, instance("request", request, Request)
        policy = self.memory if request.memory is None else request.memory
        solver = self.solver if request.solver is None else request.solver
        steps = tuple(own.num_steps for own in tracks_of(solver))
        admission = admit(request, spec, policy, steps, self.pool.page_rows, self.plan)
        need, branches = admission.need, admission.branches
        conditions = torch.stack([checked_condition(self.model, own.condition) for own in branches])
        given = given_frames(request, self.model)
        plain = replace(request, on_step=None)
        check_noise(request, spec, solver)
        noise, inputs = StartingNoise(plain, self.model), FrameInputs.of_request(request, self.model)

        def add() -> Stream:
            self._scheduler.check_room(need.most)
            state = StreamState(
                number=self._scheduler.submitted,
                request=plain,
                watched=request.on_step is not None,
                feeder=Feeder(admission.plan, policy, spec),
                policy=policy,
                tokens=spec.tokens(request.size),
                conditions=conditions,
                condition_keys=condition_keys(spec, conditions),
                branches=branches,
                weights=admission.weights,
                pages=StreamPages(len(branches), need.condition, need.frame, need.most, self._conditions),
                noise=noise,
                inputs=inputs,
                latents=dict(enumerate(given)),
                outbox=Outbox(None if request.num_frames is None else list(given)),
                decoder=decoder_for(self.codec, self.model, request.size, given, self._scheduler.decoders),
                schedule=self._schedules.use(solver),
            )
            stream = self.adopt(state, request)
            self._scheduler.add(state)
            return stream

        stream = self._between_passes(add)
        self.changes.notify()
        return stream

    @ordinary_mode()
    def step(self, passes: int = PASSES) -> bool:
        """Serve the streams whose turn it is; False if there was none that can run.

        That is one pass, or up to `passes` as long as they would feed the same frames, one level higher each,
        with no callback and no command between them. A stream that cannot go on fails alone: its error is
        raised where it is read. If the step itself is broken off (Ctrl-C), the streams of its pass fail with
        StreamInterruptedError, and the engine goes on with the others.
        """
        with self._lock:
            if self._stepping:
                raise EngineBusyError(
                    "a step inside a step: callbacks may look, cancel, edit and submit; run other streams "
                    "outside of on_step"
                )
            self._stepping = True
            try:
                ran = self._step(passes)
            finally:
                self._stepping = False
                self._tidy()
            # Only if something happened: readers with nothing to run would wake each other for ever.
            if ran:
                self.changes.notify()
            return ran

    @contextlib.contextmanager
    def running(self) -> Iterator[Engine]:
        """A thread of the engine's own runs all passes until the block ends. Readers then only wait, and
        Ctrl-C, which Python gives to the main thread, never breaks a pass off."""
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                before = self.changes.count
                if not self.step() and not stop.is_set():
                    self.changes.wait(before)

        thread = threading.Thread(target=run, name="ardiff-engine", daemon=True)
        with self._lock:
            if self._thread is not None:
                raise EngineBusyError("the engine runs already, in a thread of its own")
            self._thread = thread
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            self.changes.notify()
            thread.join()
            self._thread = None
            self.changes.notify()

    def stats(self) -> EngineStats:
        seconds = self._seconds, self._planning_seconds
        return self._between_passes(
            lambda: engine_stats(self._scheduler, self._runner, self._results, self.pool.manager, *seconds)
        )

    @contextlib.contextmanager
    def trace(self, path: str | PathLike[str]) -> Iterator[Recorder]:
        """Record every pass until the block ends, also by an error; then write a Chrome trace to `path`.
        CheckpointError, before anything is recorded: a place that cannot be written."""
        with Recorder().written_to(path) as recorder:
            self._between_passes(lambda: self._recorders.append(recorder))
            try:
                yield recorder
            finally:
                self._between_passes(lambda: self._recorders.remove(recorder))

    # --- for streams

    def advance(self) -> bool:
        """A step, unless a thread of the engine's own runs them; whether anything ran."""
        thread = self._thread
        return (thread is None or not thread.is_alive()) and self.step()

    def drive(self, state: StreamState, reached: Callable[[], bool]) -> None:
        """Run passes, or wait for those of others, until `reached` says so."""
        while not reached():
            before = self.changes.count
            if not self.advance() and not reached() and not self.changes.wait(before):
                raise self.stalled(state)

    def edit(self, act: Callable[[Editor], T]) -> T:
        """What `act` returns, called between two passes with nothing on its way to a reader."""

        def settled() -> T:
            self._results.deliver()
            if not self._stepping:
                self._results.finish()
            return act(self._editor)

        try:
            return self._between_passes(settled)
        finally:
            self.changes.notify()

    def adopt(self, state: StreamState, request: Request) -> Stream:
        """The handle of a new stream."""
        stream = Stream(self, state, request)
        if state.watched:
            self._watched[state.number] = stream
        return stream

    def leave(self, state: StreamState) -> None:
        """Cancel without waiting. The collector may call this in any thread, in any line."""
        self.inbox.leave(state)
        if self._lock.acquire(blocking=False):
            try:
                self._tidy()
            finally:
                self._lock.release()

    def stalled(self, state: StreamState) -> EngineBusyError:
        """What a reader raises when nothing has been able to run for too long."""
        return self._scheduler.stalled(state)

    # --- private

    def _step(self, passes: int) -> bool:
        self._tidy()
        started, ended = time.perf_counter(), sum(self._scheduler.ended.values())
        with self._pass():
            turn = self._scheduler.next(passes)
            if not turn.work:
                # Bring in what is on its way. A stream that has just ended may have made room for another.
                self._results.deliver()
                return self._results.finish() or sum(self._scheduler.ended.values()) > ended
            planned = time.perf_counter()
            run = self._runner.run(turn)
            moved = self._results.settle(run)
        seconds = time.perf_counter() - started
        self._seconds += seconds
        self._planning_seconds += seconds - run.compute_seconds
        try:
            self._call_back(moved)
        finally:
            self._results.finish()
        if self._recorders:
            alive, passes = list(self._scheduler.streams.values()), self._results.passes
            for recorder in self._recorders:
                recorder.extend(pass_records(run, passes, started, planned, alive, self.pool.manager))
        return True

    @contextlib.contextmanager
    def _pass(self) -> Iterator[None]:
        """What breaks off the block ends the streams of its pass, and leaves pages and books right."""
        self._busy = True
        try:
            yield
        except BaseException as error:
            self._scheduler.interrupted(error)
            self.changes.notify()
            raise
        finally:
            self._busy = False
            self._scheduler.in_turn = []

    def _call_back(self, moved: list[StreamState]) -> None:
        for state in moved:
            stream = self._watched.get(state.number) if state.watched and not state.over else None
            if stream is None or stream.request.on_step is None:
                continue
            try:
                stream.request.on_step(stream)
            except Exception as error:
                self._scheduler.end(state, "failed", wrapped(error))

    @ordinary_mode()
    def _between_passes(self, act: Callable[[], T]) -> T:
        """What `act` returns. This thread calls it if the engine is free, else the one that runs passes."""
        if self._lock.acquire(blocking=False):
            try:
                return self._now(act)
            finally:
                self._lock.release()
        done = self.inbox.post(act)
        try:
            while not done.done():
                if self._lock.acquire(blocking=False):
                    try:
                        self._tidy()
                    finally:
                        self._lock.release()
                else:
                    wait([done], timeout=0.01)
            return done.result()
        except BaseException:
            done.cancel()
            raise
        finally:
            del done  # an error in it refers to this frame, and through it to the stream

    def _now(self, act: Callable[[], T]) -> T:
        if self._busy:
            raise EngineBusyError("the engine was called from within one of its own passes or edits")
        self._tidy()
        self._busy = True
        try:
            return act()
        finally:
            self._busy = False
            self._tidy()

    def _tidy(self) -> None:
        """Do what was asked for, unless this thread is at work in the engine. Called with the lock."""
        if self._busy:
            return
        self._busy = True
        try:
            self.inbox.empty(self._scheduler.cancel)
        finally:
            self._busy = False
        if self._watched:
            self._kept = [stream for stream in self._watched.values() if stream._state.awaited]
