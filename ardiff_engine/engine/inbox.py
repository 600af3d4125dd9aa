# SPDX-License-Identifier: Apache-2.0
"""What other threads, callbacks and the collector ask of an engine. It is done between two passes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.engine.reader import Changes
from ardiff_engine.engine.state import StreamState

T = TypeVar("T")


class Inbox:
    """Any thread may post, also in the middle of a pass or of a collection: nothing here waits."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._commands: deque[Callable[[], None]] = deque()
        self._left: deque[StreamState] = deque()

    def __bool__(self) -> bool:
        return bool(self._commands or self._left)

    def leave(self, state: StreamState) -> None:
        """The stream is to be cancelled. It counts as such from now on."""
        if state.ended:
            return
        state.leaving = True
        self._left.append(state)
        self._changes.notify()

    def post(self, act: Callable[[], T]) -> Future[T]:
        """`act` is to be called; its result or error goes to the future."""
        done: Future[T] = Future()

        def command() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                with ordinary_mode():  # whatever the thread that does it has switched on
                    result = act()
            except BaseException as error:
                done.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                done.set_result(result)

        self._commands.append(command)
        return done

    def empty(self, cancel: Callable[[StreamState], None]) -> None:
        """Do what was posted, in order; streams that leave go first."""
        while self:
            while self._left:
                cancel(self._left.popleft())
            if self._commands:
                self._commands.popleft()()
