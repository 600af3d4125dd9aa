# SPDX-License-Identifier: Apache-2.0
"""Videos that replicas make: each is one call, and its file comes back with it.

A video that was accepted stands in the table with all that it follows from, its seed included. If its
replica dies, or the router, it is made again by another one, and is the same to the bit.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from ardiff_engine.serve.errors import RETRY_SECONDS, ApiError, api_error, busy
from ardiff_engine.serve.jobs import wish_again
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.store import Job, Store
from ardiff_engine.serve.wish import Wish

log = logging.getLogger("ardiff_engine.serve")
Call = Callable[[Wish], AsyncIterator[tuple[str, Any]]]
"""As `Replica.make`."""
MOST_DEATHS = 5
DIED = f"its replica died {MOST_DEATHS} times"
ACCEPT_SECONDS = 30.0
AGAIN_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class FarJob:
    """deaths: of replicas that made it. postponed: it is made after the next start."""

    id: str
    owner: str
    progress: int = 0
    started: bool = False
    deaths: int = 0
    postponed: bool = False
    ended: Future[None] = field(default_factory=Future)
    task: asyncio.Task[None] | None = None


class FarJobs:
    """Any thread may call it. lost: errors of a call whose replica has died. model: its name, its system, its
    weights."""

    def __init__(
        self,
        call: Call,
        lost: tuple[type[Exception], ...],
        model: tuple[str, str, str],
        store: Store,
        limits: Limits,
    ) -> None:
        self._call, self._lost, self._model, self._store, self._limits = call, lost, model, store, limits
        self._live: dict[str, FarJob] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ardiff-serve-far", daemon=True)
        self._thread.start()

    def create(self, wish: Wish, owner: str, awaited: bool = False) -> Job:
        """Accepted, or refused with nothing changed. awaited: of no use once the connection is gone."""
        if (stored := self._store.count()) >= self._limits.stored:
            raise busy("stored videos", str(stored), f"fewer than {self._limits.stored}: delete some first")
        accepted = asyncio.run_coroutine_threadsafe(self._create(wish, owner, awaited), self._loop)
        try:
            return accepted.result(ACCEPT_SECONDS)
        except TimeoutError:
            accepted.cancel()
            what = f"no replica has answered for {ACCEPT_SECONDS:.0f} s"
            raise ApiError(503, "no_replica", what, retry_after=RETRY_SECONDS) from None

    def resume(self, jobs: Sequence[Job]) -> None:
        """Make these again."""
        for job in jobs:
            try:
                wish_again(job, *self._model)
            except ApiError as error:
                self._store.finish(job.id, f"not made again: {error.message}", int(time.time()))
            else:
                self._loop.call_soon_threadsafe(self._begin, FarJob(job.id, job.owner), job.request)

    def live(self, job: str) -> FarJob | None:
        return self._live.get(job)

    def running(self, owner: str) -> int:
        return sum(job.owner == owner for job in list(self._live.values()))

    @property
    def count(self) -> int:
        return len(self._live)

    def remove(self, job: str, within: float = 2.0) -> None:
        if (live := self._live.get(job)) is not None:
            self._cancel(live)
            wait([live.ended], within)
        self._store.remove(job)

    def close(self, grace: float) -> None:
        """Videos may finish for `grace` seconds; those that do not are made after the next start."""
        until = time.monotonic() + grace
        for job in list(self._live.values()):
            wait([job.ended], max(0.0, until - time.monotonic()))
        for job in list(self._live.values()):
            job.postponed = True
            self._cancel(job)
            wait([job.ended])
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _cancel(self, job: FarJob) -> None:
        if job.task is not None:
            self._loop.call_soon_threadsafe(job.task.cancel)

    # --- in the loop

    async def _create(self, wish: Wish, owner: str, awaited: bool) -> Job:
        job = FarJob(f"video_{secrets.token_hex(16)}", owner)
        while True:
            answers = self._call(wish)
            try:
                kind, answer = await anext(answers)
                break
            except self._lost:
                await asyncio.sleep(AGAIN_SECONDS)
            except BaseException:
                await _closed(answers)
                raise
        if kind == "refused":
            await _closed(answers)
            raise ApiError(**answer)
        request = answer | {"awaited": awaited}
        row = Job(job.id, owner, "queued", int(time.time()), None, self._model[0], request, None)
        try:
            await asyncio.to_thread(self._store.add, row)
        except BaseException:
            await _closed(answers)
            raise
        self._begin(job, request, answers)
        return row

    def _begin(
        self, job: FarJob, request: dict[str, Any], answers: AsyncIterator[tuple[str, Any]] | None = None
    ) -> None:
        self._live[job.id] = job
        job.task = asyncio.ensure_future(self._run(job, request, answers))

    async def _run(
        self, job: FarJob, request: dict[str, Any], answers: AsyncIterator[tuple[str, Any]] | None
    ) -> None:
        """Until it is finished, by one replica after the other if they die."""
        error: str | None = DIED
        try:
            while job.deaths < MOST_DEATHS:
                try:
                    error = await self._by_one(job, answers or self._call(Wish.of(request["wish"])))
                    break
                except _Full:
                    await asyncio.sleep(AGAIN_SECONDS)
                except self._lost as lost:
                    log.warning("video %s: its replica has died: %s", job.id, type(lost).__name__)
                    job.deaths += 1
                answers = None
            await asyncio.to_thread(self._end, job, error)
        except asyncio.CancelledError:
            self._store.part(job.id).unlink(missing_ok=True)
            if job.postponed:
                self._store.postpone(job.id)
        except Exception as failure:
            log.exception("video %s failed", job.id)
            await asyncio.to_thread(self._end, job, api_error(failure).message)
        finally:
            del self._live[job.id]
            job.ended.set_result(None)

    async def _by_one(self, job: FarJob, answers: AsyncIterator[tuple[str, Any]]) -> str | None:
        """Made by one replica; why it failed. A replica that has no room now may have some later."""
        job.progress, file = 0, None
        try:
            async for kind, answer in answers:
                if kind == "refused":
                    refused = ApiError(**answer)
                    if refused.status != 429:
                        return refused.message
                    raise _Full
                if kind == "failed":
                    return str(answer)
                if kind == "progress":
                    await self._moved(job, answer)
                if kind == "data":
                    file = file or open(self._store.part(job.id), "wb")
                    file.write(answer)
            return None if file is not None else "its replica sent no file"
        finally:
            if file is not None:
                file.close()
            await _closed(answers)

    async def _moved(self, job: FarJob, progress: int) -> None:
        job.progress = progress
        if not job.started:
            job.started = True
            await asyncio.to_thread(self._store.begin, job.id)

    def _end(self, job: FarJob, error: str | None) -> None:
        if error is None:
            try:
                self._store.keep(job.id)
            except OSError as failure:
                error = api_error(failure).message
        if error is not None:
            self._store.part(job.id).unlink(missing_ok=True)
        self._store.finish(job.id, error, int(time.time()))


class _Full(Exception):
    """A replica has no room for a video that was accepted before."""


async def _closed(answers: AsyncIterator[tuple[str, Any]]) -> None:
    close = getattr(answers, "aclose", None)
    if close is not None:
        await close()
