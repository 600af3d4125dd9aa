# SPDX-License-Identifier: Apache-2.0
"""One video being generated: the handle that the user holds, and what the engine keeps for it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch

from ardiff_engine.engine import stream_edits
from ardiff_engine.engine.async_frames import AsyncFrames
from ardiff_engine.engine.changes import Changes
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.outbox import CleanFrame, Delivery, LatentFrame, Outbox
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import ScheduleRows
from ardiff_engine.engine.starting_noise import StartingNoise
from ardiff_engine.engine.stream_edits import ConditionReceipt, Effect
from ardiff_engine.engine.stream_latents import StreamLatents
from ardiff_engine.engine.stream_pages import SavedPages, StreamPages
from ardiff_engine.errors import ArdiffError, StreamClosedError, explain
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.memory.view import contains
from ardiff_engine.plan import Plan

if TYPE_CHECKING:
    from ardiff_engine.engine.engine import Engine
    from ardiff_engine.engine.steady_run import SteadyRun
    from ardiff_engine.engine.stream_register import Holdings

State = Literal["waiting", "running", "suspended", "finished", "cancelled", "failed"]


class Stream:
    """Made by `Engine.submit`. Iterate it (also with `async for`) for frames in order, or take `result()`.

    Leaving the loop, `cancel()` and dropping the last reference give all pages back. Iterating drives the
    engine: every pass serves all running streams. A stream whose request has `on_step` runs on without a
    reference.
    """

    def __init__(
        self,
        engine: Engine,
        number: int,
        request: Request,
        feeder: Feeder,
        policy: MemoryPolicy,
        conditions: torch.Tensor,
        weights: tuple[float, ...],
        holdings: Holdings,
    ) -> None:
        self.number = number
        self.request = request
        self._run: SteadyRun | None = None
        self._feeder = feeder
        self.policy = policy
        self.conditions = conditions
        self.weights = weights
        self.holdings = holdings
        self._latents = StreamLatents()
        self.noise = StartingNoise(request, engine.model.spec, engine.device)
        self.then: Plan | None = None
        """What follows the present plan: an extension that came too late to be part of it."""
        self.exact = True
        self.place = 0
        """In the queue for turns (engine.turns)."""
        self.saved: SavedPages | None = None
        self.engine = engine
        self._state: State = "waiting"
        self._error: ArdiffError | None = None
        self._collecting = False
        given: tuple[torch.Tensor, ...] = ()
        if request.prefix is not None:
            # Copied now: the caller may reuse the tensor.
            given = request.prefix.detach().to(engine.device, torch.float32, copy=True).unbind(0)
            self._latents.update(enumerate(given))
        self.outbox = Outbox(None if request.num_frames is None else list(given))
        self._finalizer = weakref.finalize(
            self, _forgotten, engine.register.dropped, engine.changes, holdings
        )
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        total = "endless" if self.num_frames is None else f"{self.num_frames} frames"
        return f"<Stream {self.number}: {self._state}, {total}, {self.frames_ready} ready to be read>"

    # --- for users

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self.engine.register.version += 1

    @property
    def done(self) -> bool:
        """True once nothing more will be computed: finished, cancelled or failed."""
        return self._state in ("finished", "cancelled", "failed")

    @property
    def num_frames(self) -> int | None:
        """Frames of the whole video, given ones and extensions included; None: endless."""
        return (self.then or self._feeder.plan).num_frames

    @property
    def frames_ready(self) -> int:
        """Clean frames that wait to be read."""
        return len(self.outbox.ready)

    @property
    def ticks_done(self) -> int:
        # Without settling a run: that would wait for the pass that another thread is in.
        run = self._run
        return self._feeder.ticks_total + (0 if run is None else run.passes)

    def take_ready(self) -> list[LatentFrame]:
        """The frames that are ready now, without running anything."""
        frames = self.outbox.take_all()
        self.engine.changes.notify()
        return frames

    def cancel(self) -> None:
        """Stop, and give all pages back at once. Frames that are ready can still be read."""
        with self.engine.lock:
            self._end("cancelled")

    def result(self) -> torch.Tensor:
        """Run to the end: clean latents [num_frames, tokens, channels], a given prefix included.

        Frames that were not read by then can still be iterated.
        """
        kept = self.outbox.kept
        if kept is None:
            raise StreamClosedError(
                explain(
                    "result() of an endless stream",
                    got="num_frames=None",
                    expected="a finite video",
                    fix="Iterate the stream instead.",
                )
            )
        self._collecting = True
        try:
            self._run_until(lambda: self.done)
        finally:
            self._collecting = False
        self.raise_if_failed()
        if self.state == "cancelled":
            raise StreamClosedError(
                explain(
                    "result() of a cancelled stream",
                    got="an unfinished video",
                    expected="a finished one",
                    fix="Submit a new request.",
                )
            )
        return torch.stack(kept)

    def raise_if_failed(self) -> None:
        """Raise the error that ended this stream, if one did."""
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[LatentFrame]:
        try:
            while (frame := self._next_ready()) is not None:
                yield frame
        finally:
            self.engine.leave(self)

    def __aiter__(self) -> AsyncFrames:
        return AsyncFrames(self)

    def set_condition(
        self,
        condition: torch.Tensor | int | None,
        *,
        negative_condition: torch.Tensor | int | None = None,
        effect: Effect = "keep",
    ) -> ConditionReceipt:
        """Another condition from the next pass on; the receipt says from which frame it holds.

        effect: "keep" leaves the stored K/V of clean frames as they are, so the new frames follow the old
            ones. "recommit" computes those of the clean frames in the window again, under the new condition.
            "reset" forgets the clean frames: what comes next is not a continuation of them. Frames in flight
            go on under the new condition in all three. Where later frames change earlier ones (masks other
            than `temporal_causal`) nothing is stored, and "keep" is the same as "recommit".
        negative_condition: None leaves the negative branch as it is.
        """
        with self.engine.settled():
            return stream_edits.set_condition(self, condition, negative_condition, effect)

    def fork(
        self,
        *,
        seed: int | None = None,
        noise_stream: int | None = None,
        on_step: Callable[[Stream], None] | None = None,
    ) -> Stream:
        """A second stream that goes on from here. Pages are shared until one of the two writes them.

        With the same noise and condition both make the same frames; another `seed` or `noise_stream` holds
        for frames that have not started and for step noise. The fork delivers frames that this stream had not
        finished yet; `result()` gives the whole video. Raises OutOfPagesError when the pool cannot promise as
        many pages again.
        """
        with self.engine.settled():
            return stream_edits.fork(self, seed, noise_stream, on_step)

    def rollback(self, frame: int) -> None:
        """Forget `frame` and all later ones and generate them again, as if the frames before were given.

        Frames after it that were not read are dropped; those that were read will come again. K/V that have
        left the window are computed anew from the clean frames, so endless streams, which do not keep those,
        can only go back as far as their window reaches.
        """
        with self.engine.settled():
            stream_edits.rollback(self, frame)

    def extend(self, frames: int) -> None:
        """Make the video longer by that many frames; only before its last frame is finished.

        Before the plan would start them, they simply join it. Later, or with lag 0, they continue the
        finished video as one that is given.
        """
        with self.engine.settled():
            stream_edits.extend(self, frames)

    def suspend(self) -> None:
        """Move K/V and latents to host memory and give all pages and the promise of them back."""
        with self.engine.settled():
            stream_edits.suspend(self)

    def resume(self) -> None:
        """Go on after `suspend`, bit for bit. While the pool is full: OutOfPagesError, no change."""
        with self.engine.settled():
            stream_edits.resume(self)

    # --- for the engine

    @property
    def feeder(self) -> Feeder:
        if self._run is not None:
            self.engine.settle()
        return self._feeder

    @property
    def latents(self) -> StreamLatents:
        if self._run is not None:
            self.engine.settle()
        return self._latents

    @latents.setter
    def latents(self, latents: StreamLatents) -> None:
        self._latents = latents

    @property
    def pages(self) -> StreamPages:
        return self.holdings.pages

    @property
    def schedule(self) -> ScheduleRows:
        return self.holdings.schedule

    @property
    def runnable(self) -> bool:
        limit = self.request.ahead_limit
        return self._state == "running" and (limit is None or self._collecting or self.outbox.unread < limit)

    def prepare(self, feed: Feed) -> None:
        """Give back pages that nobody sees any more; take pages and noise for the frames that start."""
        roster = feed.roster
        if self.pages.ready_for(roster):
            return
        for frame in [f for f in self.latents if not contains(roster.kept, f)]:
            del self.latents[frame]
        for frame in self.latents.missing(roster.frames):
            self.latents[frame] = self.noise.of(frame)
        self.pages.prepare(roster)

    def clean_copies(self, feed: Feed, latents: torch.Tensor) -> list[CleanFrame]:
        """Of the frames that are due after a pass over `feed`; latents: of those it moved."""
        # Copied twice: out of the batch that it is a row of, and away from what the reader may do to it.
        due = self._feeder.due(feed)
        moved = dict(zip(feed.roster.updated, latents, strict=True)) if due else {}
        ready = [(frame, moved[frame] if frame in moved else self._latents[frame]) for frame in due]
        return [CleanFrame(frame, latent.clone(), latent.clone()) for frame, latent in ready]

    def take_over(self, feed: Feed, latents: torch.Tensor, delivery: Delivery) -> None:
        """Go on to the next pass; what this one made clean is due from then on."""
        self._move(feed, 1, latents, delivery)
        for frame in delivery.clean:
            self.latents[frame.index] = frame.own

    @property
    def ends(self) -> bool:
        """Whether only the delivery of its last frames is left."""
        return self.outbox.passes_under_way > 0 and self.feeder.done

    @property
    def in_run(self) -> bool:
        """Whether passes are left to a run: the place in the plan is then behind."""
        return self._run is not None

    def join(self, run: SteadyRun) -> None:
        """Leave the next passes to it, until `catch_up`."""
        self._run = run

    def catch_up(self, run: SteadyRun, feed: Feed, passes: int, latents: torch.Tensor) -> None:
        """The run has ended after `passes`, the last one over `feed`; latents: of the frames it moved."""
        if self._run is not run:
            return
        if passes and not self.done:
            self._move(feed, passes, latents)
        self._run = None

    @property
    def passes_ahead(self) -> int:
        """Passes from the next one on that differ in their levels alone, and that nobody asked to be told
        of."""
        if self.request.on_step is not None or self.done:
            return 0
        return self._feeder.passes_ahead

    def finish(self) -> None:
        self._end("finished")

    def fail(self, error: ArdiffError) -> None:
        if not self.done:
            self._error = error
            self._end("failed")

    def pop(self) -> LatentFrame:
        frame = self.outbox.ready.popleft()
        self.engine.changes.notify()
        return frame

    # --- private

    def _move(self, feed: Feed, passes: int, latents: torch.Tensor, delivery: Delivery | None = None) -> None:
        """The last of `passes` was over `feed`. A stream that the collector ends meanwhile stays as it is."""
        feeder, own, outbox, updated = self._feeder, self._latents, self.outbox, feed.roster.updated
        count = 0 if delivery is None else len(delivery.clean)
        if updated:
            feeder.take_up(feed.roster)
            rows = own.after(updated, latents)
            if self.done:
                return
            # No call from here on, which an interrupt could come in with: a stream whose place in the plan
            # does not belong to its latents would go on as another video.
            own.rows = rows
            feeder.moved = feed
            feeder.tick += passes
            feeder.ticks_total += passes
        else:
            feeder.advance(feed)
        self._run = None
        if delivery is not None:
            delivery.due = True
            outbox.passes_under_way += 1
            outbox.frames_under_way += count

    def _end(self, state: State) -> None:
        if not self.done:
            # Before the state: a stream that has ended does not catch up.
            latents = self.latents
            self.state = state
            self.saved = None
            latents.clear()
            self.noise.clear()
        # Also for one that has ended: an interrupt may have come in between.
        if self._finalizer.alive:
            self.engine.register.release(self.holdings, self._state)
            self._finalizer.detach()
            self.engine.changes.notify()

    def _next_ready(self) -> LatentFrame | None:
        self._run_until(lambda: bool(self.outbox.ready) or self.done)
        if self.outbox.ready:
            return self.pop()
        self.raise_if_failed()
        return None

    def _run_until(self, reached: Callable[[], bool]) -> None:
        engine = self.engine
        while not reached():
            before = engine.changes.count
            if not engine.step() and not reached() and not engine.changes.wait(before):
                raise engine.stalled(self)


def _forgotten(dropped: deque[Holdings], changes: Changes, holdings: Holdings) -> None:
    """Called by the collector, so it only makes a note. It must not refer to the engine: that may be garbage
    with its streams, which a finalizer that holds it would keep alive.
    """
    dropped.append(holdings)
    changes.notify()
