# SPDX-License-Identifier: Apache-2.0
"""`async for` over a stream.

An object, not an async generator: a forgotten generator is closed by a task that runs some time later, and
until then the stream would hold its pages. This one cancels the stream as soon as nobody refers to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ardiff_engine.engine.outbox import LatentFrame
    from ardiff_engine.engine.stream import Stream


class AsyncFrames(AsyncIterator["LatentFrame"]):
    """Frames in order. Passes run in threads, so the event loop stays free; waiting for others takes none.

    Leaving the loop, an error, the end of the task and dropping the last reference cancel the stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __anext__(self) -> LatentFrame:
        stream, engine = self._stream, self._stream.engine
        try:
            while not stream.outbox.ready:
                if stream.done:
                    stream.raise_if_failed()
                    raise StopAsyncIteration
                before = engine.changes.count
                if await asyncio.to_thread(engine.step) or stream.outbox.ready or stream.done:
                    continue
                if not await engine.changes.wait_async(before):
                    raise engine.stalled(stream)
            return stream.pop()
        except BaseException:
            engine.leave(stream)
            raise

    async def aclose(self) -> None:
        """Cancel the stream, as `contextlib.aclosing` does."""
        self._stream.engine.leave(self._stream)

    def __del__(self) -> None:
        self._stream.engine.leave(self._stream)
