# SPDX-License-Identifier: Apache-2.0
"""The streams of one engine: which are alive, which wait for pages, whose handles nobody holds any more."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

from ardiff_engine.engine.schedules import ScheduleRows
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_pages import StreamPages
from ardiff_engine.errors import OutOfPagesError, explain
from ardiff_engine.memory.page_manager import PageManager


@dataclass(slots=True, eq=False)
class Holdings:
    """What a stream must return when it ends, even when its handle is only garbage by then."""

    pages: StreamPages
    schedule: ScheduleRows
    returned: bool = False


class StreamRegister:
    """Streams are held weakly: one that nobody reads is garbage, and gives its pages back. Those with a
    callback are held until they end.

    submitted: streams so far. ended: how many finished, were cancelled, failed.
    dropped: holdings of streams that were garbage before they had ended. Closed before the next pass.
    version: rises with every stream that comes, goes or changes its state.
    """

    def __init__(self, manager: PageManager, max_waiting: int) -> None:
        self.submitted = 0
        self.version = 0
        self.ended = {"finished": 0, "cancelled": 0, "failed": 0}
        self.dropped: deque[Holdings] = deque()
        self._manager = manager
        self._max_waiting = max_waiting
        self._streams: dict[int, weakref.ref[Stream]] = {}
        self._unattended: dict[int, Stream] = {}
        self._waiting: deque[int] = deque()
        self._left: deque[Stream] = deque()
        self._places = 0

    def alive(self) -> list[Stream]:
        """Streams that have not ended, oldest first."""
        found = [(number, ref()) for number, ref in self._streams.items()]
        alive = [stream for _, stream in found if stream is not None and not stream.done]
        if len(alive) < len(found):
            numbers = {stream.number for stream in alive}
            self._streams = {n: ref for n, ref in self._streams.items() if n in numbers}
            self._unattended = {n: stream for n, stream in self._unattended.items() if n in numbers}
        return alive

    def add(self, stream: Stream) -> None:
        self.submitted += 1
        self.version += 1
        self.queue_up(stream)
        self._streams[stream.number] = weakref.ref(stream)
        if stream.request.on_step is not None:
            self._unattended[stream.number] = stream

    def queue_up(self, stream: Stream) -> None:
        """To the end of the queue for turns."""
        stream.place = self._places
        self._places += 1

    def release(self, holdings: Holdings, state: str = "cancelled") -> None:
        """Take back what a stream held, once. After an interrupt it can be called again."""
        self.version += 1
        holdings.pages.close()
        if not holdings.returned:
            holdings.returned = True
            holdings.schedule.users -= 1
            self.ended[state] += 1

    def leave_later(self, stream: Stream) -> None:
        """Cancel it before the next pass. Takes no lock: any thread may call this, the collector too."""
        self._left.append(stream)

    @property
    def to_reap(self) -> bool:
        return bool(self.dropped or self._left)

    def reap(self) -> None:
        """Take back what streams held whose handles are gone, or whose readers are."""
        # Taken off last: an interrupt may come in between, and both can be done twice.
        while self.dropped:
            self.release(self.dropped[0])
            self.dropped.popleft()
        while self._left:
            self._left[0].cancel()
            self._left.popleft()

    # --- waiting for pages

    def wait_for_pages(self, stream: Stream) -> None:
        self._waiting.append(stream.number)

    def start_waiting(self) -> None:
        """Give pages to videos that wait for them, first come, first served."""
        while self._waiting:
            ref = self._streams.get(self._waiting[0])
            stream = None if ref is None else ref()
            if stream is not None and stream.state == "waiting":
                if stream.pages.most > self._manager.unpromised:
                    return
                stream.pages.lease = self._manager.lease(stream.pages.most)
                stream.state = "running"
                self.queue_up(stream)
            del stream
            self._waiting.popleft()

    def check_room(self, need: int) -> None:
        """Raise OutOfPagesError unless a video that needs that many pages can start, or may wait for them."""
        manager = self._manager
        if not self._waiting and need <= manager.unpromised:
            return
        if need > manager.total:
            raise OutOfPagesError(
                explain(
                    "a video larger than the page pool",
                    got=f"a stream that can need {need} pages",
                    expected=f"at most {manager.total}, the whole pool ({manager.free} free now)",
                    fix="Use a smaller window or raise max_pages.",
                )
            )
        waiting = sum(s.state == "waiting" for s in self.alive())
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
