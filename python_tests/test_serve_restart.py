# SPDX-License-Identifier: Apache-2.0
"""Videos that were not finished when the server ended: made again, to the bit, or failed with the reason."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import server as _needs  # noqa: F401  the extra serve
from helpers.waiting import eventually

import ardiff_engine as ade
from ardiff_engine.errors import ConfigError
from ardiff_engine.serve import service as stages
from ardiff_engine.serve.errors import ApiError
from ardiff_engine.serve.jobs import Jobs
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import Order, ServedModel
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.server import CONNECTION_SECONDS, SESSION_SECONDS
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.stage import Stage
from ardiff_engine.serve.store import KILLED, MOST_DEATHS, Job, Store
from ardiff_engine.serve.wish import Wish

LIMITS = Limits(streams=1, queue=4, grace=0.0)
LONG = Wish(num_frames=24, num_inference_steps=12, lag=3, size=(256, 256))
"""Longer than what may lie unread."""


class Lent:
    """The process that decodes, of all tests: each would take seconds to start its own."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[ServedModel]:
    found = served_model("tiny", ade.Pipeline.from_pretrained(tiny_model), LIMITS)
    with contextlib.closing(Stage(found.codec)) as stage, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "Stage", lambda _codec: Lent(stage))
        yield found


@contextlib.contextmanager
def started(model: ServedModel, folder: Path) -> Iterator[Service]:
    with contextlib.closing(Service(model, folder, LIMITS)) as service:
        yield service


def status(service: Service, job: Job) -> str:
    found = service.store.get(job.id, "me")
    assert found is not None
    return found.status


def reaches(service: Service, job: Job, *wanted: str) -> str:
    assert eventually(lambda: status(service, job) in wanted), status(service, job)
    return status(service, job)


def test_a_stop_in_the_middle_changes_no_byte(model: ServedModel, tmp_path: Path) -> None:
    """No seed is asked for: the one that was drawn is kept. The second video waits for pages."""
    asked = [LONG, Wish(num_frames=9, num_inference_steps=6, lag=2, class_id=1, guidance_scale=2.0)]
    with started(model, tmp_path / "data") as service:
        begin = service.store.begin

        def begun(job: str) -> None:
            """The thread of the files waits here for the stop, and the stream for its reader."""
            begin(job)
            assert eventually(lambda: service.jobs._closing)

        service.store.begin = begun  # type: ignore[method-assign]
        jobs = [service.jobs.create(wish, "me") for wish in asked]
        reaches(service, jobs[0], "in_progress")
    assert not list((tmp_path / "data").glob("*.part"))
    with started(model, tmp_path / "data") as service:
        for job in jobs:
            assert reaches(service, job, "completed", "failed") == "completed"
        twins = [service.jobs.create(Wish.of(job.request["wish"]), "me") for job in jobs]
        for job, twin in zip(jobs, twins, strict=True):
            assert reaches(service, twin, "completed", "failed") == "completed"
            assert service.store.file(job.id).read_bytes() == service.store.file(twin.id).read_bytes()
        assert service.model.engine.stats().pages_held == 0


def test_more_than_fit_come_one_after_the_other_and_a_deleted_one_does_not(
    model: ServedModel, tmp_path: Path
) -> None:
    store = Store(tmp_path / "data")
    wish = Wish(num_frames=3, num_inference_steps=4, lag=1, fps=8.0, seed=3, size=(256, 256)).as_dict()
    request = {"system": model.system, "weights": model.weights, "awaited": False, "wish": wish}
    jobs = [Job(f"v{n}", "me", "queued", n, None, "tiny", request, None) for n in range(12)]
    for job in jobs:
        store.add(job)
    store.close()
    with started(model, tmp_path / "data") as service:
        service.jobs.remove("v11")
        for job in jobs[:11]:
            assert reaches(service, job, "completed", "failed") == "completed"
        assert service.store.count() == 11


def test_what_cannot_be_made_again_has_failed_with_the_reason(model: ServedModel, tmp_path: Path) -> None:
    store, jobs = Store(tmp_path / "data"), []
    for word in ("model", "weights", "connection", "frames", "version"):
        name = "other" if word == "model" else "tiny"
        wish = Wish(num_frames=LIMITS.frames + 1 if word == "frames" else 3).as_dict()
        if word == "version":
            wish["weather"] = "fine"
        weights = "00000000" if word == "weights" else model.weights
        awaited = word == "connection"
        request = {"system": model.system, "weights": weights, "awaited": awaited, "wish": wish}
        jobs.append(Job(word, "me", "queued", 1, None, name, request, None))
        store.add(jobs[-1])
    store.close()
    with started(model, tmp_path / "data") as service:
        for job in jobs:
            assert reaches(service, job, "completed", "failed") == "failed"
            found = service.store.get(job.id, "me")
            assert found is not None and found.error is not None and job.id in found.error


def test_a_video_at_which_the_server_dies_again_and_again_has_failed(tmp_path: Path) -> None:
    """Also before its first pass. A stop in order does not count."""
    with contextlib.closing(Store(tmp_path)) as store:
        for name in ("bad", "stopped", "waits"):
            store.add(Job(name, "me", "queued", 1, None, "m", {}, None))
        for deaths in range(1, MOST_DEATHS + 1):
            store.attempt("bad")
            store.attempt("stopped")
            store.begin("stopped")
            store.postpone("stopped")
            left = {job.id: job.deaths for job in store.recover()}
            others = {"stopped": 0, "waits": 0}
            assert left == ({"bad": deaths, **others} if deaths < MOST_DEATHS else others)
        bad = store.get("bad", "me")
        assert bad is not None and (bad.status, bad.error) == ("failed", KILLED)
        assert store.unfinished() == store.unfinished("me") == 2 and store.unfinished("other") == 0


class Watched:
    """The model, each of whose orders is told to `seen` first, with the seed of the video."""

    def __init__(self, model: ServedModel, seen: Callable[[int | None], object]) -> None:
        self._model, self._seen = model, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def order(self, wish: Wish) -> Order:
        self._seen(wish.seed)
        return self._model.order(wish)


def left_behind(model: ServedModel, folder: Path, deaths: Sequence[int]) -> Store:
    """As a server that died left it: v0, v1, ... with the seeds 0, 1, ..., in one row each."""
    store = Store(folder)
    for seed, count in enumerate(deaths):
        wish = Wish(num_frames=3, num_inference_steps=4, lag=1, fps=8.0, seed=seed, size=(256, 256)).as_dict()
        request = {"system": model.system, "weights": model.weights, "awaited": False, "wish": wish}
        store.add(Job(f"v{seed}", "me", "queued", seed, None, "tiny", request, None, count))
    return store


@contextlib.contextmanager
def making(model: Any, store: Store) -> Iterator[Jobs]:
    with contextlib.closing(store):
        jobs = Jobs(model, stages.Stage(model.codec), store, LIMITS)
        with model.engine.running():
            try:
                yield jobs
            finally:
                jobs.close(0.0)


def rows(store: Store) -> dict[str, tuple[str, int]]:
    return {job.id: (job.status, job.deaths) for job in store.page("me", None, 100, False)}


def test_attempts_that_are_counted_at_once_all_count(tmp_path: Path) -> None:
    """One had been lost: both read the number before either wrote it."""
    with contextlib.closing(Store(tmp_path)) as store:
        store.add(Job("video_1", "me", "queued", 1, None, "m", {}, None, deaths=0))
        threads = [threading.Thread(target=store.attempt, args=("video_1",)) for _ in range(4)]
        with store._lock:
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        assert store.get("video_1", "me").deaths == 4  # type: ignore[union-attr]
        for expected in (3, 2, 1, 0, 0):
            store.postpone("video_1")
            found = store.get("video_1", "me")
            assert found is not None and (found.deaths, found.status) == (expected, "queued")


def test_what_may_have_killed_the_server_is_made_alone_and_last(model: ServedModel, tmp_path: Path) -> None:
    store, seen = left_behind(model, tmp_path / "data", [1, 0, 2, 1, 0]), []
    with making(Watched(model, lambda seed: seen.append((seed, store.unfinished()))), store) as jobs:
        assert jobs.count == jobs.running("me") == 5 and jobs.running("other") == 0
        jobs.resume(store.recover())
        assert eventually(lambda: jobs.count == 0)
    assert [seed for seed, _ in seen] == [1, 4, 0, 3, 2]
    assert [unfinished for _, unfinished in seen[2:]] == [3, 2, 1]


def test_an_attempt_is_written_down_before_anything_is_done_for_it(
    model: ServedModel, tmp_path: Path
) -> None:
    store, seen = left_behind(model, tmp_path / "data", [0]), []
    with making(Watched(model, lambda _: seen.append(rows(store))), store) as jobs:
        jobs.resume(store.recover())
        assert eventually(lambda: jobs.count == 0)
        assert seen == [{"v0": ("queued", 1)}]
        made = jobs.create(Wish(num_frames=3, num_inference_steps=4, lag=1), "me")
        assert rows(store)[made.id][1] == 1


def test_a_stop_does_nothing_more_for_what_waits_and_accepts_nothing(
    model: ServedModel, tmp_path: Path
) -> None:
    store, seen = left_behind(model, tmp_path / "data", [0, 0, 1]), []

    def stop(seed: int | None) -> None:
        if not seen:
            closing.start()
            assert eventually(lambda: jobs._closing)
        seen.append(seed)

    with making(Watched(model, stop), store) as jobs:
        closing = threading.Thread(target=lambda: jobs.close(0.0))
        jobs.resume(store.recover())
        assert eventually(lambda: seen)
        closing.join()
        assert seen == [0]
        assert rows(store) == {"v0": ("queued", 0), "v1": ("queued", 0), "v2": ("queued", 1)}
        with pytest.raises(ApiError) as refused:
            jobs.create(LONG, "me")
        assert (refused.value.status, refused.value.code) == (503, "stopping")
        assert store.count() == 3
        assert eventually(lambda: model.engine.stats().pages_held == 0)


def test_an_error_at_one_leaves_it_queued_and_the_others_are_made(model: ServedModel, tmp_path: Path) -> None:
    """A fault at v0; v1 is refused, and that cannot be written down."""
    store = left_behind(model, tmp_path / "data", [0, 0, 0])

    def order(seed: int | None) -> None:
        if seed == 0:
            raise RuntimeError("a fault")
        if seed == 1:
            raise ConfigError("refused")

    def finish(job: str, error: str | None, now: int) -> None:
        if job == "v1":
            raise sqlite3.OperationalError("disk full")
        Store.finish(store, job, error, now)

    store.finish = finish  # type: ignore[method-assign]
    with making(Watched(model, order), store) as jobs:
        jobs.resume(store.recover())
        assert eventually(lambda: rows(store)["v2"][0] == "completed")
        assert rows(store)["v0"] == ("queued", 0) and rows(store)["v1"][0] == "queued"
        assert jobs.count == 2


def test_what_does_not_come_to_life_leaves_no_stream_and_no_row(model: ServedModel, tmp_path: Path) -> None:
    store = left_behind(model, tmp_path / "data", [0])
    with making(model, store) as jobs:

        def refuse(*_: object) -> None:
            raise RuntimeError("the stage has gone")

        jobs._stage.open = refuse  # type: ignore[method-assign, assignment]
        with pytest.raises(RuntimeError, match="stage"):
            jobs.create(LONG, "me")
        jobs._resume(store.recover())
        assert rows(store) == {"v0": ("queued", 0)}
        stats = model.engine.stats
        assert eventually(
            lambda: stats().pages_held == stats().streams_running == stats().streams_waiting == 0
        )


def test_a_stop_is_over_before_docker_kills() -> None:
    assert SESSION_SECONDS + CONNECTION_SECONDS + Limits().grace <= 8 < 10


def test_books_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    Store(tmp_path).close()
    base = sqlite3.connect(tmp_path / "videos.sqlite")
    base.execute("ALTER TABLE videos DROP COLUMN deaths")
    base.commit()
    base.close()
    with contextlib.closing(Store(tmp_path)) as store:
        store.add(Job("v", "me", "queued", 1, None, "m", {}, None))
        assert [job.id for job in store.recover()] == ["v"]
