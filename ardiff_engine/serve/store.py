# SPDX-License-Identifier: Apache-2.0
"""Videos on disk: a table of jobs in SQLite, and one file for each that is finished.

A file is written as `<id>.part`, flushed, renamed to `<id>.mp4`, and only then is its job completed. So a job
that was killed at any moment has either a whole file or none, and `recover` puts the books right.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ardiff_engine.errors import CheckpointError

JobStatus = Literal["queued", "in_progress", "completed", "failed"]
TABLE = """
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL,
    status TEXT NOT NULL, created_at INTEGER NOT NULL, completed_at INTEGER, model TEXT NOT NULL,
    request TEXT NOT NULL, error TEXT, deaths INTEGER NOT NULL DEFAULT 0
)
"""
COLUMNS = "id, owner, status, created_at, completed_at, model, request, error, deaths"
MOST_DEATHS = 3
KILLED = f"the server died {MOST_DEATHS} times while it made this video"


@dataclass(frozen=True, slots=True)
class Job:
    """owner: a digest of the key that asked for it. request: what was asked, and what was chosen for it.
    times: seconds since 1970. deaths: attempts at it that came to no end, as the server died in them."""

    id: str
    owner: str
    status: JobStatus
    created_at: int
    completed_at: int | None
    model: str
    request: dict[str, Any]
    error: str | None
    deaths: int = 0


class Store:
    """Any thread may call it. What it is asked is answered from memory, also while a row is on its way to the
    disk; rows are few, as the server limits how many videos it keeps."""

    def __init__(self, folder: Path) -> None:
        """CheckpointError: a folder that cannot be written, or that another server uses."""
        self.folder = folder
        self._lock = threading.Lock()  # held while a row changes, here and on disk
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(
                folder / "videos.sqlite", check_same_thread=False, isolation_level=None
            )
            # Held until the process ends, however it ends: two servers would call each other's videos dead.
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(TABLE)
            if "deaths" not in [row[1] for row in self._base.execute("PRAGMA table_info(videos)")]:
                self._base.execute("ALTER TABLE videos ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0")
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("COMMIT")
            rows = self._base.execute(f"SELECT {COLUMNS} FROM videos ORDER BY number")
            self._jobs = {job.id: job for job in map(_job, rows)}
        except (OSError, ValueError, sqlite3.Error) as error:
            raise CheckpointError(
                f"{folder}: videos cannot be kept there ({error}). Choose a folder by --data that can be "
                "written and that no other server uses."
            ) from error

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def file(self, job: str) -> Path:
        """Of a finished video. job: an id that is in the table, never text of a client."""
        return self.folder / f"{job}.mp4"

    def part(self, job: str) -> Path:
        return self.folder / f"{job}.part"

    def recover(self) -> list[Job]:
        """At the start: no half file is left, and what had its whole file is completed. The other unfinished
        ones, the oldest first, are queued again. One that was attempted each time that the server died may be
        the reason: after MOST_DEATHS times it has failed."""
        for job in self._unfinished():
            if self.file(job.id).exists():
                self.finish(job.id, None, job.created_at)
            elif job.deaths >= MOST_DEATHS:
                self.finish(job.id, KILLED, job.created_at)
            else:
                self._change(job.id, status="queued")
        kept = {job.id for job in self._all() if job.status == "completed"}
        for path in self.folder.iterdir():
            if path.suffix == ".part" or (path.suffix == ".mp4" and path.stem not in kept):
                path.unlink(missing_ok=True)
        return self._unfinished()

    def add(self, job: Job) -> None:
        values = (
            job.id,
            job.owner,
            job.status,
            job.created_at,
            None,
            job.model,
            json.dumps(job.request),
            None,
            job.deaths,
        )
        with self._lock:
            self._base.execute(f"INSERT INTO videos ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            self._jobs[job.id] = job

    def attempt(self, job: str) -> None:
        """Written before anything is done for it that the server might not outlive; `postpone` undoes it."""
        self._change(job, 1)

    def begin(self, job: str) -> None:
        """A pass has run it. On disk it stays queued, as after a restart it would be."""
        with self._lock:
            found = self._jobs.get(job)
            if found is not None and found.status == "queued":
                self._jobs[job] = replace(found, status="in_progress")

    def keep(self, job: str) -> None:
        """The part is complete: it becomes the file."""
        descriptor = os.open(self.part(job), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(self.part(job), self.file(job))
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def postpone(self, job: str) -> None:
        """To be made after the next start. The attempt was broken off in order and does not count."""
        self._change(job, -1, status="queued")

    def finish(self, job: str, error: str | None, now: int) -> None:
        """error: why it failed; None: it is completed."""
        if error is None:
            self._change(job, status="completed", completed_at=now, error=None)
        else:
            self._change(job, status="failed", completed_at=None, error=error)

    def remove(self, job: str) -> None:
        """The record first: a file without one is removed at the next start, a record without file is not."""
        with self._lock:
            self._base.execute("DELETE FROM videos WHERE id = ?", (job,))
            self._jobs.pop(job, None)
        for path in (self.part(job), self.file(job)):
            path.unlink(missing_ok=True)

    def has(self, job: str) -> bool:
        return job in self._jobs

    def get(self, job: str, owner: str) -> Job | None:
        found = self._jobs.get(job)
        return found if found is not None and found.owner == owner else None

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[Job]:
        """Of one owner, in order of creation. after: the last one of the page before."""
        own = [job for job in self._all() if job.owner == owner]
        if newest_first:
            own.reverse()
        if after is not None:
            places = [place for place, job in enumerate(own) if job.id == after]
            own = own[places[0] + 1 :] if places else []
        return own[:limit]

    def count(self) -> int:
        return len(self._jobs)

    def unfinished(self, owner: str | None = None) -> int:
        """Videos of one owner, or of all, that are being made or wait for it."""
        return sum(owner in (None, job.owner) for job in self._unfinished())

    def _all(self) -> list[Job]:
        """The oldest first."""
        return list(self._jobs.values())

    def _unfinished(self) -> list[Job]:
        return [job for job in self._all() if job.status in ("queued", "in_progress")]

    def _change(self, name: str, deaths: int = 0, **fields: Any) -> None:
        """Of a video that may have been deleted in the meantime. deaths: that are added. fields: of `Job`."""
        with self._lock:
            found = self._jobs.get(name)
            if found is None:
                return
            job = replace(found, deaths=max(0, found.deaths + deaths), **fields)
            self._base.execute(
                "UPDATE videos SET status = ?, error = ?, completed_at = ?, deaths = ? WHERE id = ?",
                (job.status, job.error, job.completed_at, job.deaths, name),
            )
            self._jobs[name] = job


def _job(row: tuple[Any, ...]) -> Job:
    """Of a row with COLUMNS."""
    name, owner, status, created, completed, model, request, error, deaths = row
    return Job(name, owner, status, created, completed, model, json.loads(request), error, deaths)
