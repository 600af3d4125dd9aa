# SPDX-License-Identifier: Apache-2.0
"""Requests that schemathesis makes of the server's own OpenAPI document, right and wrong ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from effort import ALL
from helpers import server as _needs  # noqa: F401  the extra serve
from helpers.waiting import PATIENCE, eventually
from hypothesis import HealthCheck, given, settings

import ardiff_engine as ade
from ardiff_engine.serve.app import create_app
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.realtime import Realtime
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.service import Service

SMALL = Limits(seconds=1.0, frames=3, steps=4, side=64, text=50, stored=30, grace=0.0)
OPERATIONS = 11


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model = served_model("tiny", ade.Pipeline.from_pretrained(tiny_model), SMALL)
    found = Service(model, tmp_path_factory.mktemp("http") / "data", SMALL)
    yield found
    found.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn")
    app = create_app(service, [], partial(Realtime, service))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.slow
def test_many_requests(service: Service, url: str) -> None:
    tried(service, url, 200)


@pytest.mark.skipif(ALL, reason="the long one is above")
def test_some_requests(service: Service, url: str) -> None:
    tried(service, url, 5)


def tried(service: Service, url: str, requests: int) -> None:
    """So many of each operation: no fault of the server, nothing of its inside, nothing left behind."""
    schemathesis = pytest.importorskip("schemathesis")
    operations = [
        found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    ]
    assert len(operations) == OPERATIONS
    statuses: set[int] = set()
    for operation in operations:

        @settings(max_examples=requests, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answered(case: Any) -> None:
            answer = case.call(timeout=PATIENCE)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, answer.text
            assert b"Traceback" not in answer.content and b"ardiff_engine/" not in answer.content

        answered()
    assert {200, 400, 404} <= statuses
    assert eventually(lambda: service.jobs.count == service.model.engine.stats().pages_held == 0)
