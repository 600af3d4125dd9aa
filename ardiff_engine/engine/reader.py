# SPDX-License-Identifier: Apache-2.0
"""Between the engine and those who read its streams: frames that are ready, and sleep until there are."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ardiff_engine.engine.decoding import Picture

STALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """A frame that has become clean. latent: in the layout of the model. seconds: since its submission.
    pictures: what an engine with a codec made of it."""

    index: int
    latent: torch.Tensor
    seconds: float
    pictures: tuple[Picture, ...] = ()


class Outbox:
    """The clean frames of one stream. The engine adds and forgets them, any thread may take them.

    kept: all clean frames of a finite video, given ones included; the reader has copies of its own.
    frames_under_way: clean, but not yet known to be good.
    first_frame_seconds: from the stream's start to its first delivered frame.
    """

    __slots__ = ("_lock", "_ready", "_started", "first_frame_seconds", "frames_under_way", "kept")

    def __init__(self, kept: list[torch.Tensor] | None) -> None:
        self.kept = kept
        self.frames_under_way = 0
        self.first_frame_seconds: float | None = None
        self._ready: deque[LatentFrame] = deque()
        self._lock = threading.Lock()
        self._started = time.perf_counter()

    def __len__(self) -> int:
        """Frames that are ready."""
        return len(self._ready)

    @property
    def unread(self) -> int:
        """Frames that wait to be read, or will soon."""
        return len(self._ready) + self.frames_under_way

    def deliver(
        self, clean: list[tuple[int, torch.Tensor, torch.Tensor]], pictures: list[tuple[Picture, ...]]
    ) -> None:
        """Frames, in order: number, the stream's copy, the reader's; and the pictures of each."""
        seconds = time.perf_counter() - self._started
        if clean and self.first_frame_seconds is None:
            self.first_frame_seconds = seconds
        with self._lock:
            self._ready.extend(
                LatentFrame(index, latent, seconds, own)
                for (index, _, latent), own in zip(clean, pictures, strict=True)
            )
            self.frames_under_way -= len(clean)
        if self.kept is not None:
            self.kept += [own for _, own, _ in clean]

    def take(self) -> LatentFrame | None:
        with self._lock:
            return self._ready.popleft() if self._ready else None

    def take_all(self) -> list[LatentFrame]:
        with self._lock:
            frames = list(self._ready)
            self._ready.clear()
        return frames

    def forget_from(self, frame: int) -> None:
        """`frame` and all later ones are generated again."""
        if self.kept is not None:
            del self.kept[frame:]
        with self._lock:
            self._ready = deque(ready for ready in self._ready if ready.index < frame)


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

    def wait(self, before: int, reached: Callable[[], bool] | None = None) -> bool:
        """Until `count` is not `before`; False if that took more than STALL_SECONDS.

        reached: a cheap look, called by whoever notifies: sleep until a change after which it is true. A
        thread that wakes at every change, most of them for nothing, takes the interpreter from the passes.
        """
        if reached is None:
            with self._changed:
                return self._changed.wait_for(lambda: self.count != before, STALL_SECONDS)
        asleep = threading.Lock()  # and no event: a finalizer may notify while one is being set
        asleep.acquire()

        def listener() -> None:
            if reached():
                with contextlib.suppress(RuntimeError):  # awake already
                    asleep.release()

        with self._listened(before, listener):
            return asleep.acquire(timeout=STALL_SECONDS)

    async def wait_async(self, before: int, reached: Callable[[], bool] = lambda: True) -> bool:
        """The same for a task, which sleeps until a change after which `reached` is true. It occupies no
        thread: a pool of them, all waiting, would keep out the one reader that could go on.

        reached: a cheap look, called by whoever notifies. Many tasks that all wake at every change, most of
        them for nothing, would occupy the event loop.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def listener() -> None:
            if reached():
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(changed.set)

        with self._listened(before, listener):
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes with the change.
                async with asyncio.timeout(STALL_SECONDS):
                    await changed.wait()
            except TimeoutError:
                return False
        return True

    @contextlib.contextmanager
    def _listened(self, before: int, listener: Callable[[], None]) -> Iterator[None]:
        """`listener` is called at each change after `count` was `before`."""
        with self._changed:
            self._listeners.add(listener)
            changed = self.count != before
        try:
            if changed:
                listener()
            yield
        finally:
            with self._changed:
                self._listeners.discard(listener)
