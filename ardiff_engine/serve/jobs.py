# SPDX-License-Identifier: Apache-2.0
"""Videos that are made as a whole: one thread takes their frames from the engine and writes their files.

The engine never waits for it: a video whose frames lie unread pauses alone (`Request.max_ahead`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass, field

from ardiff_engine.engine import Stream
from ardiff_engine.media.frames import as_frames, enlarge
from ardiff_engine.media.mp4 import Mp4Encoder
from ardiff_engine.serve.errors import api_error, busy
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.served_model import Order, ServedModel
from ardiff_engine.serve.store import Job, Store
from ardiff_engine.serve.wish import Wish

log = logging.getLogger("ardiff_engine.serve")
STOPPED = "the server was stopped before the video was finished"


@dataclass(slots=True, eq=False)
class LiveJob:
    """A video that is being made. ended: its row and file are in their last state."""

    id: str
    owner: str
    stream: Stream
    order: Order
    encoder: Mp4Encoder | None = None
    begun: bool = False
    unwanted: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def progress(self) -> int:
        """In per cent, below 100 until the file is whole."""
        total = self.stream.num_ticks
        return min(99, 100 * self.stream.ticks_done // total) if total else 0


class Jobs:
    """Any thread may call it. `close` ends what still runs."""

    def __init__(self, model: ServedModel, store: Store, limits: Limits) -> None:
        self._model, self._store, self._limits = model, store, limits
        self._live: dict[str, LiveJob] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ardiff-serve-files", daemon=True)
        self._thread.start()

    def create(self, wish: Wish, owner: str) -> Job:
        """Accepted, or refused with nothing changed."""
        if (stored := self._store.count()) >= self._limits.stored:
            raise busy("stored videos", str(stored), f"fewer than {self._limits.stored}: delete some first")
        order = self._model.order(wish)
        # Under the lock, so that the thread does not meet it before the table knows it.
        with self._lock:
            stream = self._model.engine.submit(order.request)
            name = f"video_{secrets.token_hex(16)}"
            request = wish.as_dict() | {
                "seed": order.request.seed,
                "size": f"{order.size[0]}x{order.size[1]}",
                "num_frames": order.frames,
                "fps": order.fps,
                "num_inference_steps": order.steps,
            }
            job = Job(name, owner, "queued", int(time.time()), None, self._model.name, request, None)
            try:
                self._store.add(job)
            except BaseException:
                stream.cancel()
                raise
            self._live[name] = LiveJob(name, owner, stream, order)
        self._model.engine.changes.notify()
        return job

    def live(self, job: str) -> LiveJob | None:
        return self._live.get(job)

    def running(self, owner: str) -> int:
        return sum(job.owner == owner for job in list(self._live.values()))

    @property
    def count(self) -> int:
        return len(self._live)

    def remove(self, job: str, within: float = 2.0) -> None:
        """Its pages are given back, then its file and its record are gone."""
        live = self._live.get(job)
        if live is not None:
            live.unwanted = True
            live.stream.cancel()
            self._model.engine.changes.notify()
            live.ended.wait(within)
        self._store.remove(job)

    def close(self, grace: float) -> None:
        """Videos may finish for `grace` seconds; those that do not have failed, with the reason."""
        until = time.monotonic() + grace
        for job in list(self._live.values()):
            job.ended.wait(max(0.0, until - time.monotonic()))
        self._closing = True
        for job in list(self._live.values()):
            job.stream.cancel()
        self._model.engine.changes.notify()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        changes = self._model.engine.changes
        while True:
            before = changes.count
            jobs = list(self._live.values())
            if not jobs and self._closing:
                return
            if not any([self._served(job) for job in jobs]):
                changes.wait(before)

    def _served(self, job: LiveJob) -> bool:
        """Take what is ready; whether there was anything. An error ends this video alone."""
        try:
            if not job.begun and job.stream.ticks_done > 0:
                job.begun = True
                self._store.begin(job.id)
            over = job.stream.done  # asked first: what is ready after that is all there is
            frames = job.stream.take_ready()
            for frame in frames:
                for picture in frame.pictures:
                    self._write(job, picture.image.numpy())
            if over and not frames:
                job.stream.raise_if_failed()
                self._finish(job, STOPPED if job.stream.state == "cancelled" else None)
                return True
            return bool(frames)
        except Exception as error:
            log.exception("video %s failed", job.id)
            job.stream.cancel()
            self._finish(job, api_error(error).message)
            return True

    def _write(self, job: LiveJob, pixels: object) -> None:
        if job.encoder is None:
            job.encoder = Mp4Encoder(self._store.part(job.id), job.order.fps)
        job.encoder.write(enlarge(as_frames([pixels]), job.order.scale)[0])

    def _finish(self, job: LiveJob, error: str | None) -> None:
        try:
            if job.encoder is not None:
                encoder, job.encoder = job.encoder, None
                encoder.close()
            if error is None and not job.unwanted:
                self._store.keep(job.id)
        except Exception as failure:
            log.exception("video %s could not be kept", job.id)
            error = api_error(failure).message
        try:
            if error is not None or job.unwanted:
                self._store.part(job.id).unlink(missing_ok=True)
            self._store.finish(job.id, error, int(time.time()))
        except Exception:
            log.exception("video %s: its end could not be written down", job.id)
        del self._live[job.id]
        job.ended.set()
