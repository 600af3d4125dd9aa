# SPDX-License-Identifier: Apache-2.0
"""A live session that goes on in another replica than it began in: the stream is made again from its start.

Its noise follows from its seed, and every condition and action comes after the same tick as before, so each
frame has the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ardiff_engine.engine import Stream
from ardiff_engine.serve.live import LiveStream
from ardiff_engine.serve.order import Change, Order
from ardiff_engine.serve.realtime import Realtime
from ardiff_engine.serve.wish import Wish


@dataclass(frozen=True, slots=True)
class Steered:
    """An interaction as it was answered. event: what it asked for. event_id: of its client, if he gave one.
    tick, first_chunk: of its receipt."""

    event: dict[str, Any]
    event_id: str | None
    tick: int
    first_chunk: int


class Replayed(Realtime):
    """Also takes `steered`, a list of fields of `Steered`, in session.start. For routers alone."""

    _edits: _Edits | None = None

    async def _act(self, kind: str, event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        if self._first is not None and self._edits is not None and kind != "session.ping":
            stream, due = self._first.stream, self._edits.due
            while due and not stream.done:  # else a new edit would come before an old one
                before = stream.engine.changes.count
                await stream.engine.changes.wait_async(before, lambda: not due or stream.done)
        return await super()._act(kind, event, values)

    async def _start(self, event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        self._steered = [Steered(**own) for own in values.pop("steered", ())]
        return await super()._start(event, values)

    def _order(self, wish: Wish) -> Order:
        order = super()._order(wish)
        due = [(own.tick, self._service.model.steered(own.event)) for own in self._steered]
        for change in (change for tick, change in due if tick == 0):
            order = replace(order, request=change.before(order.request))
        if later := [own for own in due if own[0] > 0]:
            self._edits = _Edits(later)
            order = replace(order, request=replace(order.request, on_step=self._edits))
        return order

    async def _shown(self, live: LiveStream, more: dict[str, Any]) -> None:
        if self._first is live:
            for own in self._steered:
                if own.event_id is not None:
                    live.steered(own.event_id, own.first_chunk)
        await super()._shown(live, more)


class _Edits:
    """Called by the engine after each tick of the stream."""

    def __init__(self, due: list[tuple[int, Change]]) -> None:
        self.due = due

    def __call__(self, stream: Stream) -> None:
        while self.due and self.due[0][0] == stream.ticks_done:
            self.due[0][1].of(stream)
            del self.due[0]
