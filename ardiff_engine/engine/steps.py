# SPDX-License-Identifier: Apache-2.0
"""The steps of an engine: one pass over the streams whose turn it is, and what everybody gets from it.

Whatever goes wrong stays with the stream that it belongs to. All that can fail for one stream is tried
before anything changes, so that no stream moves on by half.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from ardiff_engine.engine import stream_edits
from ardiff_engine.engine.batch import Packer
from ardiff_engine.engine.deliveries import Deliveries
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.outbox import Delivery
from ardiff_engine.engine.passes import Outcome, Passes
from ardiff_engine.engine.recorder import Recorder, TickRecord, stream_tick
from ardiff_engine.engine.steady_run import LEAST_PASSES, SteadyRun
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_register import StreamRegister
from ardiff_engine.engine.turns import Turns
from ardiff_engine.errors import wrapped
from ardiff_engine.memory.page_manager import PageManager
from ardiff_engine.ranges import annotate


class Steps:
    """Called with the engine's lock held. ticks .. first_frame_seconds: as in EngineStats.

    run: the steady passes that are under way, if any. recorders: who is told of every pass.
    """

    def __init__(
        self,
        register: StreamRegister,
        manager: PageManager,
        packer: Packer,
        passes: Passes,
        turns: Turns,
        deliveries: Deliveries,
    ) -> None:
        self._register = register
        self._manager = manager
        self._packer = packer
        self._passes = passes
        self.turns = turns
        self.deliveries = deliveries
        self.ticks = self.cells = self.updates = self.frames = 0
        self.seconds = self.planning_seconds = 0.0
        self.first_frame_seconds: float | None = None
        self.recorders: list[Recorder] = []
        self.run: SteadyRun | None = None
        self._delivered: list[Stream] = []

    def step(self) -> bool:
        """As `Engine.step`."""
        run = self.run
        if run is not None:
            if self._goes_on(run) and self._step_of(run):
                return True
            self.settle()
        if self._delivered or len(self.deliveries) > self.deliveries.delay:
            # An interrupt came before the last step had handed everything over.
            self.deliver(self.deliveries.delay)
            self.finish_delivered()
        started = time.perf_counter()
        with annotate("ardiff.plan"):
            self._register.reap()
            self._register.start_waiting()
            ended = sum(self._register.ended.values())
            work = self.turns.next()
        if not work:
            # Nothing to start: bring in what is on its way, for which readers may be waiting.
            self.deliver(0)
            if self.finish_delivered():
                return True
            # Whoever failed in its turn has given its pages back: one that waits for them may run next.
            return sum(self._register.ended.values()) > ended
        run = self._run_over(work)
        if run is None:
            self._step_over(work, started)
            return True
        run.begin()
        self.run = run
        planned = time.perf_counter()
        self.planning_seconds += planned - started
        self.seconds += planned - started
        if not self._step_of(run):
            self.settle()
            work = [(stream, feed) for stream, feed in work if not stream.done]
            if work:
                self._step_over(work, time.perf_counter())
        return True

    def settle(self) -> None:
        """End the run of steady passes, if there is one: every stream catches up."""
        run = self.run
        if run is not None and run.settle():
            self.run = None

    def deliver(self, on_their_way: int) -> None:
        """Hand frames to their readers once it is known that they are good."""
        for stream, delivery in self.deliveries.arrived(on_their_way):
            self._delivered.append(stream)
            stream.outbox.deliver(delivery)
            self.frames += len(delivery.clean)
            if delivery.clean and self.first_frame_seconds is None:
                self.first_frame_seconds = stream.outbox.first_frame_seconds

    def finish_delivered(self) -> bool:
        """End videos whose last frames were delivered; whether anything was delivered at all."""
        delivered = bool(self._delivered)
        for stream in self._delivered:
            self._finish_if_done(stream)
        self._delivered.clear()
        return delivered

    # --- private

    def _step_over(self, work: Work, started: float) -> None:
        """A pass after which every stream is told. started: when its planning did."""
        planned = time.perf_counter()
        outcomes = self._passes.run(work)
        self.deliveries.check([outcome.verdict for outcome in outcomes])
        computed = time.perf_counter()
        # First every stream gets what this pass computed, then callbacks run: one that cancels, fails or is
        # interrupted finds all streams at the same tick.
        moved = self._hand_over(outcomes)
        self.ticks += 1
        finished = time.perf_counter()
        self.seconds += finished - started
        self.planning_seconds += planned - started + finished - computed + self._passes.packing_seconds
        interrupt: BaseException | None = None
        for stream in moved:
            try:
                if not stream.done:
                    self._call_back(stream)
            except BaseException as error:
                # Not before the others had their callbacks: nobody would call those again.
                interrupt = interrupt or error
        self.finish_delivered()
        if self.recorders:
            self._record(work, started, planned)
        if interrupt is not None:
            raise interrupt

    def _run_over(self, work: Work) -> SteadyRun | None:
        """For this pass and the next ones, if they change nothing but the levels of these streams."""
        ahead = 0 if self.recorders else min(stream.passes_ahead for stream, _ in work)
        if ahead < LEAST_PASSES:
            return None
        # One that waits for its turn or its reader may run next.
        if sum(stream.state == "running" for stream in self._register.alive()) > len(work):
            return None
        try:
            return SteadyRun(self._packer, work, ahead, self._register.version)
        except Exception:
            # Whatever it is, a pass over these streams meets it too, and knows whose fault it is.
            return None

    def _goes_on(self, run: SteadyRun) -> bool:
        register = self._register
        return not (run.over or register.to_reap or run.version != register.version or self.recorders)

    def _step_of(self, run: SteadyRun) -> bool:
        """The next pass of the run. False if it failed and changed nothing: the streams do it themselves."""
        started = time.perf_counter()
        try:
            with annotate("ardiff.pack"):
                batch = run.batch()
            packed = time.perf_counter()
            result = self._passes.compute(batch)
            verdict = run.verdict(result.findings)
            # The collector may have ended a stream meanwhile, and the run with it.
            if (self.deliveries.delay == 0 and not verdict.good) or self.run is not run:
                return False
            computed = time.perf_counter()
            run.accept(result.latents)
        except Exception:
            return False
        self.ticks += 1
        self.cells += batch.x.shape[0]
        self.updates += len(result.latents)
        if self.deliveries.delay:
            self.deliveries.begin([verdict])
            self.deliver(self.deliveries.delay)
            self.finish_delivered()
        finished = time.perf_counter()
        self.seconds += finished - started
        self.planning_seconds += packed - started + finished - computed
        return True

    def _record(self, work: Work, started: float, planned: float) -> None:
        fed = {stream.number: stream_tick(stream, feed) for stream, feed in work}
        held = [stream_tick(s, None) for s in self._register.alive() if s.number not in fed and s.pages.held]
        manager, passes = self._manager, self._passes
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
        for recorder in self.recorders:
            recorder.add(record)

    def _hand_over(self, outcomes: list[Outcome]) -> list[Stream]:
        """Give every stream what was computed for it: those that went on. All that can fail comes before
        anything changes: a stream moved on by half would go on as another video.
        """
        moves: list[tuple[Stream, Feed, torch.Tensor, Delivery]] = []
        for outcome in outcomes:
            self.cells += outcome.cells
            self.updates += len(outcome.latents)
            for stream, feed, own in outcome.parts():
                if stream.done:
                    continue
                try:
                    clean = self._passes.tried_again(partial(stream.clean_copies, feed, own))
                except Exception as error:
                    stream.fail(wrapped(error))
                else:
                    moves.append((stream, feed, own, Delivery(clean)))
        moved: list[Stream] = []
        self.deliveries.begin([outcome.verdict for outcome in outcomes])
        for stream, feed, own, delivery in moves:
            if stream.done:
                continue
            # First: whatever interrupts from now on, frames of a stream that has moved reach its reader.
            self.deliveries.add(stream, delivery)
            stream.take_over(feed, own, delivery)
            moved.append(stream)
        self.deliver(self.deliveries.delay)
        return moved

    def _finish_if_done(self, stream: Stream) -> None:
        # One that takes part in a run has passes ahead.
        if stream.in_run or stream.done or not stream.feeder.done or stream.ends:
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
