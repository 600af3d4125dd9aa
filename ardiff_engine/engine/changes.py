# SPDX-License-Identifier: Apache-2.0
"""Lets readers sleep until something happens that may let them go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

STALL_SECONDS = 60.0


class Changes:
    """A count of what happened. Read `count`, look whether you can go on, and if not wait for more than that.

    Never held while anything else is waited for, so any thread, event loop or finalizer may call `notify`.
    """

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], None]] = set()

    def notify(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def wait(self, before: int) -> bool:
        """Until `count` is not `before`; False if that took more than STALL_SECONDS."""
        with self._changed:
            return self._changed.wait_for(lambda: self.count != before, STALL_SECONDS)

    async def wait_async(self, before: int) -> bool:
        """The same for a task. It occupies no thread: a pool of them, all waiting, would keep out the one
        reader that could go on.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._listeners.add(listener)
            if self.count != before:
                changed.set()
        try:
            await asyncio.wait_for(changed.wait(), STALL_SECONDS)
        except TimeoutError:
            return False
        finally:
            with self._changed:
                self._listeners.discard(listener)
        return True
