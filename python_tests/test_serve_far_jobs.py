# SPDX-License-Identifier: Apache-2.0
"""Videos that replicas make, with replicas that die, are full or fail when the test says so. Without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import server as _needs  # noqa: F401  the extra serve
from helpers.waiting import PATIENCE, eventually

from ardiff_engine.serve.errors import ApiError
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.ray.far_jobs import DIED, MOST_DEATHS, FarJobs
from ardiff_engine.serve.store import Job, Store
from ardiff_engine.serve.wish import Wish

MODEL = ("tiny", "ar-diffusion", "c0ffee00")
FULL = {"status": 429, "code": "busy", "what": "no pages"}
WRONG = {"status": 400, "code": "invalid_value", "what": "class_id"}


class Died(Exception): ...


class Calls:
    """acts: what becomes of one call after the other; after the last, all are made whole."""

    def __init__(self, *acts: str) -> None:
        self.acts, self.wishes, self.closed = list(acts), [], 0  # type: ignore[var-annotated]

    async def __call__(self, wish: Wish) -> AsyncIterator[tuple[str, Any]]:
        self.wishes.append(wish)
        act = self.acts.pop(0) if self.acts else "make"
        try:
            if act in ("full", "wrong"):
                yield "refused", FULL if act == "full" else WRONG
                return
            if act == "die at once":
                raise Died
            seed = 7 if wish.seed is None else wish.seed
            chosen = Wish(seed=seed, num_frames=3, fps=8.0, size=(16, 16)).as_dict()
            yield "accepted", {"system": MODEL[1], "weights": MODEL[2], "wish": chosen}
            yield "progress", 50
            yield "data", b"half of "
            if act == "die":
                raise Died
            if act == "hang":
                await asyncio.Event().wait()
            if act == "fail":
                yield "failed", "NaN"
                return
            yield "data", str(seed).encode()
        finally:
            self.closed += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "data")
    yield found
    found.close()


def jobs(store: Store, calls: Calls, limits: Limits | None = None) -> FarJobs:
    return FarJobs(calls, (Died,), MODEL, store, limits or Limits(grace=0.0))


def settled(store: Store, far: FarJobs, job: Job) -> Job:
    if (live := far.live(job.id)) is not None:
        live.ended.result(PATIENCE)
    found = store.get(job.id, "me")
    assert found is not None
    return found


def test_a_video_whose_replicas_die_is_made_again_with_its_seed(store: Store) -> None:
    calls = Calls("die at once", "die", "die")
    far = jobs(store, calls)
    job = settled(store, far, far.create(Wish(), "me"))
    assert job.status == "completed" and store.file(job.id).read_bytes() == b"half of 7"
    assert [wish.seed for wish in calls.wishes] == [None, None, 7, 7]
    far.close(0.0)


def test_a_video_that_kills_each_replica_fails_in_the_end(store: Store) -> None:
    calls = Calls(*["die"] * 2 * MOST_DEATHS)
    far = jobs(store, calls)
    job = settled(store, far, far.create(Wish(), "me"))
    assert (job.status, job.error) == ("failed", DIED) and len(calls.wishes) == MOST_DEATHS
    assert not store.part(job.id).exists()
    far.close(0.0)


def test_a_full_replica_refuses_what_is_new_and_is_waited_for_by_what_was_accepted(store: Store) -> None:
    calls = Calls("full", "die", "full", "make")
    far = jobs(store, calls)
    with pytest.raises(ApiError) as refused:
        far.create(Wish(), "me")
    assert refused.value.status == 429 and store.count() == 0
    assert settled(store, far, far.create(Wish(), "me")).status == "completed"
    assert not calls.acts and calls.closed == 4
    far.close(0.0)


def test_what_is_wrong_is_told(store: Store) -> None:
    far = jobs(store, Calls("wrong", "fail"))
    with pytest.raises(ApiError) as refused:
        far.create(Wish(), "me")
    assert (refused.value.status, refused.value.what) == (400, "class_id")
    assert store.count() == 0 and far.count == 0
    job = settled(store, far, far.create(Wish(), "me"))
    assert (job.status, job.error) == ("failed", "NaN") and not store.part(job.id).exists()
    far.close(0.0)


def test_a_deleted_video_stops_its_replica(store: Store) -> None:
    calls = Calls("hang")
    far = jobs(store, calls)
    job = far.create(Wish(), "me")
    far.remove(job.id, within=PATIENCE)
    assert calls.closed == 1 and far.count == 0 and store.get(job.id, "me") is None
    assert not list(store.folder.glob("video_*"))
    far.close(0.0)


def test_what_a_stop_or_a_death_of_the_router_leaves_is_made_after_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    far = jobs(store, Calls("hang", "hang"))
    left, awaited = far.create(Wish(seed=3), "me"), far.create(Wish(), "me", awaited=True)
    assert eventually(lambda: all(store.part(own.id).exists() for own in (left, awaited)))
    far.close(0.0)
    store.close()

    store = Store(tmp_path / "data")
    far = jobs(store, calls := Calls())
    far.resume(store.recover())
    assert eventually(lambda: not far.count and store.get(left.id, "me").status != "queued")  # type: ignore[union-attr]
    assert store.file(left.id).read_bytes() == b"half of 3" and [own.seed for own in calls.wishes] == [3]
    assert "not made again" in str(settled(store, far, awaited).error)
    far.close(0.0)
    store.close()
