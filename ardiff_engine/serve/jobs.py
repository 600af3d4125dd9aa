# SPDX-License-Identifier: Apache-2.0
"""Videos that are made as a whole: one thread takes their frames from the engine and has their files written.

The engine never waits for it: a video whose frames lie unread pauses alone (`Request.max_ahead`).

A video that was not finished when the server ended is made again, from its first frame, at the next start.
Noise follows from seed and place, and files from pictures, so with the same weights each byte is what it
would have been. A server with other weights, or another system, does not go on with it.

A video may be the reason that the server died. What was accepted then is made again one after the other, so
that only the reason itself is at work at each death. After a few of them it has failed.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

from ardiff_engine.engine import Stream
from ardiff_engine.errors import (
    ConfigError,
    EngineBusyError,
    OutOfMemoryError,
    OutOfPagesError,
    PoolTooSmallError,
)
from ardiff_engine.serve.errors import RETRY_SECONDS, ApiError, api_error, busy
from ardiff_engine.serve.film import Form
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import Order, ServedModel
from ardiff_engine.serve.stage import Stage
from ardiff_engine.serve.store import Job, Store
from ardiff_engine.serve.wish import Wish

log = logging.getLogger("ardiff_engine.serve")
LEFT = "the connection that waited for it ended with the server"


@dataclass(slots=True, eq=False)
class LiveJob:
    """A video that is being made. writing: frames that are on their way into the file. whole: nothing more
    comes into it. unwanted: it was deleted. postponed: it is made after the next start. ended: its row and
    file are in their last state."""

    id: str
    owner: str
    stream: Stream
    order: Order
    writing: list[Future[Any]] = field(default_factory=list)
    begun: bool = False
    whole: bool = False
    unwanted: bool = False
    postponed: bool = False
    ended: Future[None] = field(default_factory=Future)

    @property
    def left(self) -> bool:
        """No file comes of it now. One that was whole when it was postponed is kept."""
        return self.unwanted or (self.postponed and self.stream.state == "cancelled")

    @property
    def progress(self) -> int:
        """In per cent, below 100 until the file is whole."""
        total = self.stream.num_ticks
        return min(99, 100 * self.stream.ticks_done // total) if total else 0

    @property
    def started(self) -> bool:
        """Whether a pass has run it."""
        return self.stream.ticks_done > 0

    @property
    def moves(self) -> bool:
        """Whether there is something to do for it; a cheap look."""
        if self.started and not self.begun:
            return True
        if self.writing:
            return all(future.done() for future in self.writing)
        return self.stream.frames_ready > 0 or self.stream.done


class Jobs:
    """Any thread may call it. `close` ends what still runs."""

    def __init__(self, model: ServedModel, stage: Stage, store: Store, limits: Limits) -> None:
        self._model, self._stage, self._store, self._limits = model, stage, store, limits
        self._live: dict[str, LiveJob] = {}
        self._closing = False
        # Held while a stored video comes to life or goes, so that none is deleted in between, and none comes
        # to life after `_closing`.
        self._changing = threading.Lock()
        self._resuming: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name="ardiff-serve-files", daemon=True)
        self._thread.start()

    def create(self, wish: Wish, owner: str, awaited: bool = False) -> Job:
        """Accepted, or refused with nothing changed. awaited: of no use once the connection is gone."""
        if (stored := self._store.count()) >= self._limits.stored:
            raise busy("stored videos", str(stored), f"fewer than {self._limits.stored}: delete some first")
        order = self._model.order(wish)
        chosen = replace(
            wish, seed=order.request.seed, num_frames=order.frames, fps=order.fps, size=order.size
        )
        request = {
            "num_inference_steps": order.steps,
            "system": self._model.system,
            "weights": self._model.weights,
            "awaited": awaited,
            "wish": chosen.as_dict(),
        }
        name = f"video_{secrets.token_hex(16)}"
        job = Job(name, owner, "queued", int(time.time()), None, self._model.name, request, None, deaths=1)
        stream = self._submitted(order)
        with self._changing:
            try:
                if self._closing:
                    raise ApiError(503, "stopping", "the server stops", retry_after=RETRY_SECONDS)
                self._store.add(job)
                self._begin(job, order, stream)
            except BaseException:
                stream.cancel()
                with contextlib.suppress(Exception):
                    self._store.remove(job.id)
                raise
        return job

    def resume(self, jobs: Sequence[Job]) -> None:
        """Make these again, in a thread of its own: in their order, each as soon as there is room, and then
        those at which the server has died, each when the one before has ended."""
        self._resuming = threading.Thread(
            target=self._resume, args=(jobs,), name="ardiff-serve-resume", daemon=True
        )
        self._resuming.start()

    def _resume(self, jobs: Sequence[Job]) -> None:
        resumed: list[str] = []
        for job in sorted(jobs, key=lambda job: job.deaths):
            if job.deaths:
                self._wait_for(resumed)
            if self._closing:
                return
            try:
                self._again(job)
            except Exception:
                log.exception("video %s is not made again before the next start", job.id)
            resumed.append(job.id)

    def _wait_for(self, jobs: Sequence[str]) -> None:
        """Until these have ended, or the server stops."""
        changes = self._model.engine.changes
        while True:
            before = changes.count
            if self._closing or not any(job in self._live for job in jobs):
                return
            changes.wait(before)

    def _again(self, job: Job) -> None:
        """What can never be made again has failed. With any other error it stays queued."""
        self._store.attempt(job.id)
        try:
            order = self._model.order(
                wish_again(job, self._model.name, self._model.system, self._model.weights)
            )
            while not self._resumed(job, order):
                pass
        except (ApiError, ConfigError, PoolTooSmallError) as error:
            log.warning("video %s cannot be made again: %s", job.id, error)
            self._store.finish(job.id, f"not made again: {api_error(error).message}", int(time.time()))
        except BaseException:
            self._store.postpone(job.id)
            raise

    def _resumed(self, job: Job, order: Order) -> bool:
        """False: there was no room, and something has changed since."""
        before = self._model.engine.changes.count
        with self._changing:
            if self._closing:
                self._store.postpone(job.id)
                return True
            if not self._store.has(job.id):
                return True  # deleted in the meantime
            try:
                stream = self._submitted(order)
            except PoolTooSmallError:
                raise
            except (OutOfPagesError, OutOfMemoryError, EngineBusyError):
                stream = None
            if stream is not None:
                try:
                    self._begin(job, order, stream)
                except BaseException:
                    stream.cancel()
                    raise
                return True
        self._model.engine.changes.wait(before)
        return False

    def _submitted(self, order: Order) -> Stream:
        model, request = self._model, order.request
        return model.room.opened(request.size, lambda: model.engine.submit(request))

    def _begin(self, job: Job, order: Order, stream: Stream) -> None:
        self._stage.open(job.id, Form("mp4", order.fps, order.scale, self._store.part(job.id)))
        # Last, so that the thread does not meet it before the table knows it.
        self._live[job.id] = LiveJob(job.id, job.owner, stream, order)
        self._model.engine.changes.notify()

    def live(self, job: str) -> LiveJob | None:
        return self._live.get(job)

    def running(self, owner: str) -> int:
        """Videos of this owner that are not finished, those that wait to be made again among them."""
        return self._store.unfinished(owner)

    @property
    def count(self) -> int:
        return self._store.unfinished()

    def remove(self, job: str, within: float = 2.0) -> None:
        """Its pages are given back, then its file and its record are gone."""
        with self._changing:
            live = self._live.get(job)
            if live is None:
                self._store.remove(job)
                return
        live.unwanted = True
        live.stream.cancel()
        self._model.engine.changes.notify()
        wait([live.ended], within)
        self._store.remove(job)

    def close(self, grace: float) -> None:
        """Videos may finish for `grace` seconds; those that do not are made after the next start."""
        until = time.monotonic() + grace
        with self._changing:
            self._closing = True
        self._model.engine.changes.notify()
        if self._resuming is not None:
            self._resuming.join()
        for job in list(self._live.values()):
            wait([job.ended], max(0.0, until - time.monotonic()))
        for job in list(self._live.values()):
            job.postponed = True
            job.stream.cancel()
        self._model.engine.changes.notify()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        changes = self._model.engine.changes
        while True:
            before = changes.count
            closing = self._closing  # asked first: no video comes after it
            jobs = list(self._live.values())
            if not jobs and closing:
                return
            if not any([self._served(job) for job in jobs]):
                changes.wait(before, self._moves)

    def _moves(self) -> bool:
        return self._closing or any(job.moves for job in list(self._live.values()))

    def _served(self, job: LiveJob) -> bool:
        """Take what is ready; whether there was anything. An error ends this video alone."""
        try:
            if not job.begun and job.started:
                job.begun = True
                self._store.begin(job.id)
            # One handful at a time, so that the engine pauses a video that comes too fast for its file.
            if not all(future.done() for future in job.writing):
                return False
            for future in job.writing:
                future.result()
            job.writing.clear()
            if job.whole:
                self._finish(job, None)
                return True
            over = job.stream.done  # asked first: what is ready after that is all there is
            frames = [] if job.left else job.stream.take_ready()
            if frames:
                job.writing = [self._stage.push(job.id, frame.index, frame.latent, None) for frame in frames]
            elif over:
                job.stream.raise_if_failed()
                job.writing, job.whole = [self._stage.finish(job.id)], True
            if job.writing:
                job.writing[-1].add_done_callback(lambda _: self._model.engine.changes.notify())
            return bool(job.writing)
        except Exception as error:
            log.exception("video %s failed", job.id)
            job.stream.cancel()
            self._finish(job, api_error(error).message)
            return True

    def _finish(self, job: LiveJob, error: str | None) -> None:
        try:
            self._stage.drop(job.id).result()
            if error is None and not job.left:
                self._store.keep(job.id)
        except Exception as failure:
            log.exception("video %s could not be kept", job.id)
            error = api_error(failure).message
        try:
            if error is not None or job.left:
                self._store.part(job.id).unlink(missing_ok=True)
            if job.left and job.postponed:
                self._store.postpone(job.id)
            else:
                self._store.finish(job.id, error, int(time.time()))
        except Exception:
            log.exception("video %s: its end could not be written down", job.id)
        del self._live[job.id]
        job.ended.set_result(None)
        self._model.engine.changes.notify()


def wish_again(job: Job, model: str, system: str, weights: str) -> Wish:
    """What makes the same video as a job that was left. ApiError: a server with this model cannot."""
    then = (job.model, job.request.get("system"), job.request.get("weights"))
    if (model, system, weights) != then:
        now = f"{model} {system} with weights {weights}"
        raise ApiError(409, "model_changed", "the model", now, f"{then[0]} {then[1]} with weights {then[2]}")
    if job.request.get("awaited"):
        raise ApiError(409, "left", LEFT)
    return Wish.of(job.request["wish"])
