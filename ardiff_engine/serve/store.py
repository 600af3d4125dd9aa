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
from dataclasses import dataclass
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
    """Any thread may call it."""

    def __init__(self, folder: Path) -> None:
        """CheckpointError: a folder that cannot be written, or that another server uses."""
        self.folder = folder
        self._lock = threading.Lock()
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
        except (OSError, sqlite3.Error) as error:
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
        for job in self._select("status IN ('queued', 'in_progress')"):
            if self.file(job.id).exists():
                self.finish(job.id, None, job.created_at)
        self._run(
            "UPDATE videos SET status = 'failed', error = ? "
            "WHERE status IN ('queued', 'in_progress') AND deaths >= ?",
            (KILLED, MOST_DEATHS),
        )
        self._run("UPDATE videos SET status = 'queued' WHERE status = 'in_progress'")
        kept = {job.id for job in self._select("status = 'completed'")}
        for path in self.folder.iterdir():
            if path.suffix == ".part" or (path.suffix == ".mp4" and path.stem not in kept):
                path.unlink(missing_ok=True)
        return self._select("status = 'queued' ORDER BY number")

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
        self._run(f"INSERT INTO videos ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def attempt(self, job: str) -> None:
        """Written before anything is done for it that the server might not outlive; `postpone` undoes it."""
        self._run("UPDATE videos SET deaths = deaths + 1 WHERE id = ?", (job,))

    def begin(self, job: str) -> None:
        """A pass has run it."""
        self._run("UPDATE videos SET status = 'in_progress' WHERE id = ? AND status = 'queued'", (job,))

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
        self._run("UPDATE videos SET status = 'queued', deaths = MAX(deaths - 1, 0) WHERE id = ?", (job,))

    def finish(self, job: str, error: str | None, now: int) -> None:
        """error: why it failed; None: it is completed."""
        status = "completed" if error is None else "failed"
        done = now if error is None else None
        self._run(
            "UPDATE videos SET status = ?, error = ?, completed_at = ? WHERE id = ?",
            (status, error, done, job),
        )

    def remove(self, job: str) -> None:
        """The record first: a file without one is removed at the next start, a record without file is not."""
        self._run("DELETE FROM videos WHERE id = ?", (job,))
        for path in (self.part(job), self.file(job)):
            path.unlink(missing_ok=True)

    def has(self, job: str) -> bool:
        return bool(self._select("id = ?", (job,)))

    def get(self, job: str, owner: str) -> Job | None:
        found = self._select("id = ? AND owner = ?", (job, owner))
        return found[0] if found else None

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> list[Job]:
        """Of one owner, in order of creation. after: the last one of the page before."""
        where, values = "owner = ?", [owner]
        if after is not None:
            sign = "<" if newest_first else ">"
            where += f" AND number {sign} (SELECT number FROM videos WHERE id = ? AND owner = ?)"
            values += [after, owner]
        order = "DESC" if newest_first else "ASC"
        return self._select(f"{where} ORDER BY number {order} LIMIT {int(limit)}", tuple(values))

    def count(self) -> int:
        with self._lock:
            return int(self._base.execute("SELECT COUNT(*) FROM videos").fetchone()[0])

    def unfinished(self, owner: str | None = None) -> int:
        """Videos of one owner, or of all, that are being made or wait for it."""
        with self._lock:
            return int(
                self._base.execute(
                    "SELECT COUNT(*) FROM videos WHERE status IN ('queued', 'in_progress') "
                    "AND owner = COALESCE(?, owner)",
                    (owner,),
                ).fetchone()[0]
            )

    def _select(self, where: str, values: tuple[str, ...] = ()) -> list[Job]:
        with self._lock:
            rows = self._base.execute(f"SELECT {COLUMNS} FROM videos WHERE {where}", values).fetchall()
        return [_job(row) for row in rows]

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        with self._lock:
            self._base.execute(statement, values)


def _job(row: tuple[Any, ...]) -> Job:
    """Of a row with COLUMNS."""
    name, owner, status, created, completed, model, request, error, deaths = row
    return Job(name, owner, status, created, completed, model, json.loads(request), error, deaths)
