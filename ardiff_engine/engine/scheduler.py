# SPDX-License-Identifier: Apache-2.0
"""Which streams are alive, which of them wait for pages, and which share the next pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ardiff_engine import arguments
from ardiff_engine.engine.decoding import StreamDecoder
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.reader import STALL_SECONDS
from ardiff_engine.engine.state import Status, StreamState
from ardiff_engine.errors import (
    ArdiffError,
    EngineBusyError,
    OutOfPagesError,
    PoolTooSmallError,
    StreamInterruptedError,
    explain,
    wrapped,
)
from ardiff_engine.memory.page_manager import PageManager
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ranges import annotate


@dataclass(frozen=True, slots=True)
class Turn:
    """What is run next. work: the streams and what each feeds in the first pass; passes: how many may follow
    each other, as nothing but levels changes in them."""

    work: Work
    passes: int


class Scheduler:
    """Called between passes.

    streams: those that have not ended, by number, oldest first. submitted: streams so far. ended: how many
        finished, were cancelled, failed. in_turn: those of the present pass.
    max_batch_tokens: what one pass takes at most; None: all streams are in every pass.
    tried_again: calls once more where memory was short (Runner.tried_again).
    """

    def __init__(
        self,
        spec: ModelSpec,
        manager: PageManager,
        tried_again: Callable[[Callable[[], Any]], Any],
        max_waiting: int,
        max_batch_tokens: int | None,
    ) -> None:
        self.streams: dict[int, StreamState] = {}
        self.submitted = 0
        self.ended: dict[Status, int] = {"finished": 0, "cancelled": 0, "failed": 0}
        self.in_turn: list[StreamState] = []
        self._spec = spec
        self._manager = manager
        self._tried_again = tried_again
        self._max_waiting = arguments.integer("max_waiting", max_waiting, low=0)
        if max_batch_tokens is not None:
            max_batch_tokens = arguments.integer("max_batch_tokens", max_batch_tokens, low=1)
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[StreamState] = deque()
        self._turns = 0

    @property
    def decoders(self) -> list[StreamDecoder | None]:
        """Of all streams, in their order."""
        return [state.decoder for state in self.streams.values()]

    def next(self, passes: int) -> Turn:
        """What the streams of the next pass feed, their pages taken. One that cannot say so fails alone."""
        with annotate("ardiff.plan"):
            return self._next(passes)

    def _next(self, passes: int) -> Turn:
        self._start_waiting()
        runnable = [state for state in self.streams.values() if state.runnable]
        if self._max_batch_tokens is None:
            self.in_turn = runnable
        else:
            self.in_turn = self._first_in_turn(runnable, self._max_batch_tokens)
        work: Work = []
        for state in self.in_turn:
            try:
                feed = self._tried_again(state.feeder.next)
                self._tried_again(partial(state.prepare, feed))
            except Exception as error:
                self.end(state, "failed", wrapped(error))
            else:
                work.append((state, feed))
        # Frames of one size stand side by side: the solver takes them in one piece.
        work.sort(key=_tokens_of)
        return Turn(work, min(passes, self._passes_ahead(work)))

    def add(self, state: StreamState) -> None:
        """A new stream. One that is not running waits for its pages."""
        self.submitted += 1
        self.queue_up(state)
        self.streams[state.number] = state
        if state.status == "waiting":
            self._waiting.append(state)
            self._start_waiting()

    def queue_up(self, state: StreamState) -> None:
        """To the end of the queue for turns."""
        state.turn = self._turns
        self._turns += 1

    def end(self, state: StreamState, status: Status, error: ArdiffError | None = None) -> None:
        """The stream has ended: everything that it holds is given back. Only the first end counts."""
        if state.ended:
            return
        state.status, state.error = status, error
        self.ended[status] += 1
        self.streams.pop(state.number, None)
        if state in self._waiting:
            self._waiting.remove(state)
        state.pages.close()
        state.schedule.users -= 1
        state.latents.clear()
        state.history.clear()
        state.noise.clear()
        state.saved = None
        if state.decoder is not None:
            state.decoder.close()

    def cancel(self, state: StreamState) -> None:
        self.end(state, "cancelled")

    def interrupted(self, cause: BaseException) -> None:
        """The present pass was broken off in whatever line: its streams fail, the others' books are right."""
        for state in self.in_turn:
            if state.leaving:
                self.cancel(state)
                continue
            self.end(state, "failed", broken_off(cause))
        leases = [state.pages.lease for state in self.streams.values()]
        self._manager.recount([lease for lease in leases if lease is not None])

    def check_room(self, need: int) -> None:
        """Raise OutOfPagesError unless a video that needs that many pages can start, or may wait for them."""
        manager = self._manager
        if not self._waiting and need <= manager.unpromised:
            return
        if need > manager.total:
            raise PoolTooSmallError(
                explain(
                    "a video larger than the page pool",
                    got=f"a stream that can need {need} pages",
                    expected=f"at most {manager.total}, the whole pool ({manager.free} free now)",
                    fix="Use a smaller window or raise max_pages.",
                )
            )
        waiting = sum(state.status == "waiting" for state in self.streams.values())
        if waiting >= self._max_waiting:
            raise OutOfPagesError(
                explain(
                    "the page pool is full",
                    got=f"a stream that can need {need} pages",
                    expected=f"at most {manager.unpromised} ({manager.free} free now, {manager.total} "
                    f"in total, the rest promised to running streams), or fewer than {self._max_waiting} "
                    "waiting videos",
                    fix="Wait for a stream to finish, or raise max_pages or max_waiting.",
                )
            )

    def stalled(self, state: StreamState) -> EngineBusyError:
        """What is raised where this stream is read and nothing has been able to run for too long."""
        others = [other for other in self.streams.values() if other is not state]
        paused = [other.number for other in others if other.status == "running"]
        waiting = f"; streams {paused} wait for their readers" if paused else ""
        return EngineBusyError(
            explain(
                f"reading stream {state.number}",
                got=f"no pass for {STALL_SECONDS:.0f} s: it is {state.shown}{waiting}",
                expected="something that can run",
                fix="Before reading, resume it, and read or cancel the others. A loop over its frames that "
                "ends by this error has cancelled it.",
            )
        )

    def _start_waiting(self) -> None:
        """Give pages to videos that wait for them, first come, first served."""
        while self._waiting:
            state = self._waiting[0]
            if state.status == "waiting":
                if state.pages.most > self._manager.unpromised:
                    return
                state.pages.lease = self._manager.lease(state.pages.most)
                state.status = "running"
                self.queue_up(state)
            self._waiting.popleft()

    def _passes_ahead(self, work: Work) -> int:
        """Passes that may follow each other with no look at anything between them."""
        if any(state.watched or state.repacked for state, _ in work):
            return 1
        # One that waits for its turn or its reader may run next.
        if sum(state.status == "running" for state in self.streams.values()) > len(work):
            return 1
        return min((state.feeder.passes_ahead for state, _ in work), default=1)

    def _first_in_turn(self, states: list[StreamState], budget: int) -> list[StreamState]:
        """Those that share the next pass, in the order of submission."""
        planned: list[StreamState] = []
        costs: list[int] = []
        for state in sorted(states, key=lambda state: state.turn):
            try:
                feed = self._tried_again(state.feeder.next)
            except Exception as error:
                self.end(state, "failed", wrapped(error))
                continue
            planned.append(state)
            costs.append(self._tokens(state, feed))
        chosen = [planned[index] for index in within_budget(costs, budget)]
        for state in chosen:
            self.queue_up(state)
        return sorted(chosen, key=lambda state: state.number)

    def _tokens(self, state: StreamState, feed: Feed) -> int:
        """Tokens that this feed adds to a pass."""
        rosters = state.rosters(feed)
        contexts = len(rosters) * feed.planned.feeds_context
        cells = sum(len(roster.frames) for roster in rosters)
        return cells * state.tokens + contexts * self._spec.context_tokens


def _tokens_of(part: tuple[StreamState, Feed]) -> int:
    return part[0].tokens


def broken_off(cause: BaseException) -> StreamInterruptedError:
    error = StreamInterruptedError(
        f"a pass that served this stream was broken off by {type(cause).__name__}: submit the request again. "
        "In `with engine.running():` Ctrl-C does not reach the passes"
    )
    error.__cause__ = cause
    return error


def within_budget(costs: Sequence[int], budget: int) -> list[int]:
    """Indices of what fits, in order of turn. The first always runs, alone if it must: nobody waits for ever.

    Smaller ones behind one that does not fit may fill the rest of the pass; that one then is first before
    long.
    """
    chosen: list[int] = []
    used = 0
    for index, cost in enumerate(costs):
        if not chosen or used + cost <= budget:
            chosen.append(index)
            used += cost
    return chosen
