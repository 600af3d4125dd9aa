# SPDX-License-Identifier: Apache-2.0
"""Who the server lets in, by headers alone: no engine runs behind the gate here."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ardiff_engine.serve.gate import Gate


@pytest.fixture(scope="module")
def client() -> TestClient:
    inside = Starlette(routes=[Route("/health", lambda request: PlainTextResponse("ok"))])
    return TestClient(Gate(inside, [], 1 << 20), base_url="http://127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:80", "[::1]:8000"])
def test_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "",
        "[::1",
        "[abc]",
        "]",
        "127.0.0.1@evil.example",
        "127.0.0.1.evil.example",
        "é[",
        "a b",
    ],
)
def test_other_and_broken_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/health", headers={"Host": host.encode("latin-1")})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://[::1", "http://[", "é://x", "//127.0.0.1x"]
)
def test_other_and_broken_origins_are_refused(client: TestClient, origin: str) -> None:
    answer = client.get("/health", headers={"Host": "127.0.0.1", "Origin": origin.encode("latin-1")})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"


@pytest.mark.parametrize("length", ["-1", "1e3", "٣".encode().decode("latin-1"), "9" * 30, ""])
def test_broken_lengths_are_refused(client: TestClient, length: str) -> None:
    headers = {"Host": "127.0.0.1", "Content-Length": length.encode("latin-1")}
    assert client.get("/health", headers=headers).status_code == 413
