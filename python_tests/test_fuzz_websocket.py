# SPDX-License-Identifier: Apache-2.0
"""Hostile messages for a live session: see tools/fuzz/websocket.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from effort import ALL
from helpers.server import PATIENT, running

from tools.fuzz import websocket


@pytest.mark.slow
def test_ten_thousand_messages(tiny_model: Path, tmp_path: Path) -> None:
    tried(tiny_model, tmp_path, 10_000)


@pytest.mark.skipif(ALL, reason="the long one is above")
def test_some_messages(tiny_model: Path, tmp_path: Path) -> None:
    tried(tiny_model, tmp_path, 120)


def tried(model: Path, folder: Path, messages: int) -> None:
    # Sessions whose connection has broken are soon over.
    with running(model, folder / "data", seconds={**PATIENT, "resume": 2.0}) as server:
        found = websocket.run(server.socket, messages, seed=1)
        assert found.problems == []
        assert found.sent >= messages and found.answers["invalid_value"] > messages / 100
        assert all(found.answers[f"session.{done}"] > 0 for done in ("created", "forked", "cancelled"))
        assert server.stop() == 143
        # uvicorn notes text that is none with a traceback of its own.
        assert "ardiff_engine" not in server.errors, server.errors
