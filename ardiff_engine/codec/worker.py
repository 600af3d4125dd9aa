# SPDX-License-Identifier: Apache-2.0
"""Decoding beside the engine: a thread turns finished latents into pictures, in order, while ticks go on.

CPU: the thread keeps the caller's number of intra-op threads. Another number would split sums differently, so
pictures would no longer equal, bit for bit, those decoded inline; and PyTorch's switch for it also moves
other threads. The engine and the decoder then share the cores, as the operating system sees fit.
CUDA: the thread works on a stream of its own, which waits for the latents and for nothing else.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Generic, TypeVar

import torch

from ardiff_engine.errors import ArdiffError, ConfigError, StreamClosedError, explain
from ardiff_engine.ranges import annotate

Piece = TypeVar("Piece")
Picture = TypeVar("Picture")

CHECK_SECONDS = 0.2
"""How often a waiting call looks whether the thread is still there: a fork, say, takes it away silently."""


class DecodeWorker(Generic[Piece, Picture]):
    """One thread, one decoder: `submit` pieces, `take` what the decoder makes of them in the same order.

    decoder: called in the thread with one piece after the other. What it returns must be on the CPU, as that
        of a FrameDecoder is: nobody waits for the GPU after it.
    most_waiting: pieces that may wait for the decoder; `submit` waits while there are as many. Results wait
        without a limit: who submits faster than he takes looks at `unread`.
    device: where the pieces are computed. The thread is started here; modes that PyTorch keeps per thread
        (autocast, a profiler) do not reach it.

    If the decoder raises, everything before that piece can still be taken, then `take` raises the error once,
    and the worker is closed. Use it in a `with` block, or call `close()`.
    """

    def __init__(
        self,
        decoder: Callable[[Piece], Picture],
        most_waiting: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if most_waiting < 1:
            raise ConfigError(
                explain("DecodeWorker.most_waiting", got=most_waiting, expected=">= 1", fix="Use 1.")
            )
        # Its thread holds no reference to this object, so that a forgotten worker is collected and its thread
        # ends. Nobody waits for that: the collector may run in a pass, or in the thread itself.
        self._work: _Work[Piece, Picture] = _Work(decoder, most_waiting, torch.device(device))
        self._work.start()
        weakref.finalize(self, self._work.close).atexit = False

    def submit(self, piece: Piece) -> None:
        """Queue a piece; waits while `most_waiting` others do.

        On CUDA the decoder waits for what the calling thread has queued on its current stream. After a
        failure the piece is dropped, so that `take` can hand out what came before. StreamClosedError after
        `close()`.
        """
        work = self._work
        event = work.record()
        with work.changed:
            while len(work.pieces) >= work.most_waiting and work.going:
                work.changed.wait(CHECK_SECONDS)
            work.check_open()
            if work.going:
                work.pieces.append((piece, event))
                work.unread += 1
                work.changed.notify_all()

    @property
    def unread(self) -> int:
        """Pieces that were submitted and not yet taken, decoded or not."""
        return self._work.unread

    @property
    def ready(self) -> bool:
        """True if `take()` would not wait: there is a result, or an error to raise."""
        work = self._work
        with work.changed:
            return bool(work.pictures) or (not work.closed and not work.going)

    def take(self) -> Picture:
        """The next result; waits until it is there.

        ArdiffError: the decoder raised (the cause is attached) or the thread is gone; raised once, in order.
        StreamClosedError: after that, after `close()`, and if nothing is on its way.
        """
        work = self._work
        with work.changed:
            while not work.pictures and work.unread and work.going:
                work.changed.wait(CHECK_SECONDS)
            work.check_open()
            if work.pictures:
                work.unread -= 1
                return work.pictures.popleft()
            if not work.going:
                error = work.failure()
                work.close()
                raise error
        raise StreamClosedError(
            explain("take()", got="no piece on its way", expected="one or more", fix="Submit a piece first.")
        )

    def close(self) -> None:
        """Drop all that waits; return once the thread has ended, after the piece in hand. Idempotent."""
        self._work.stop()

    def __enter__(self) -> DecodeWorker[Piece, Picture]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Work(Generic[Piece, Picture]):
    """What the thread and its owner share. `changed` guards everything and announces every change."""

    def __init__(self, decoder: Callable[[Piece], Picture], most_waiting: int, device: torch.device) -> None:
        self.most_waiting = most_waiting
        self.pieces: deque[tuple[Piece, torch.cuda.Event | None]] = deque()
        self.pictures: deque[Picture] = deque()
        self.unread = 0
        self.closed = False
        self.changed = threading.Condition()
        self._decoder = decoder
        self._device = device
        self._thread = threading.Thread(target=self._run, name="ardiff-decode", daemon=True)
        self._ended = False
        self._error: BaseException | None = None

    # --- in the thread

    def _run(self) -> None:
        try:
            on_side: AbstractContextManager[object] = nullcontext()
            if self._device.type == "cuda":
                on_side = torch.cuda.stream(torch.cuda.Stream(self._device))
            with on_side:
                while (item := self._next()) is not None:
                    self._decode(*item)
                    # Not kept while waiting for the next one: latents of a closed stream would stay alive.
                    del item
        except (
            BaseException
        ) as error:  # also SystemExit: whatever ends the thread, the reader must hear of it
            self._error = error
        finally:
            with self.changed:
                self._ended = True
                self.pieces.clear()
                self.changed.notify_all()
            atexit.unregister(self.stop)

    def _next(self) -> tuple[Piece, torch.cuda.Event | None] | None:
        with self.changed:
            while not self.pieces and not self.closed:
                self.changed.wait()
            if self.closed:
                return None
            item = self.pieces.popleft()
            self.changed.notify_all()
            return item

    def _decode(self, piece: Piece, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.wait(torch.cuda.current_stream(self._device))
        with annotate("ardiff.decode"):
            picture = self._decoder(piece)
        with self.changed:
            if not self.closed:
                self.pictures.append(picture)
            self.changed.notify_all()

    # --- for the owner

    def start(self) -> None:
        # A thread that is inside PyTorch must not be there when the interpreter goes.
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        self.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def record(self) -> torch.cuda.Event | None:
        """A mark behind the work that the caller has queued. A piece is held until its result is on the CPU;
        a decoder that lets go of parts of it earlier guards those itself (host_copy.read_here).
        """
        if self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).record_event()

    @property
    def going(self) -> bool:
        """False once the thread will do nothing more; asks the thread too, which may have died unheard."""
        return not self.closed and not self._ended and self._thread.is_alive()

    def check_open(self) -> None:
        if self.closed:
            raise StreamClosedError(
                explain("a decode worker", got="a call", expected="none after its end", fix="Make a new one.")
            )

    def failure(self) -> ArdiffError:
        error = self._error
        if isinstance(error, ArdiffError):
            return error
        found = ArdiffError(
            explain(
                "decoding",
                got="a thread that is gone" if error is None else f"{type(error).__name__}: {error}",
                expected="a picture",
                fix="See the cause." if error is not None else "Make the worker in the process that uses it.",
            )
        )
        found.__cause__ = error
        return found

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.pieces.clear()
            self.pictures.clear()
            self.unread = 0
            self._error = None
            self.changed.notify_all()
