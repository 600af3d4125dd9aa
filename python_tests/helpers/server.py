# SPDX-License-Identifier: Apache-2.0
"""A server process of `ardiff serve`, for tests."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers.processes import started
from helpers.waiting import PATIENCE

for extra in ("fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "av"):
    pytest.importorskip(extra, reason="needs the extra serve")

# A slow machine is no client that is too slow. The limits themselves are tested in test_serve_session.py.
SERVE = """
import functools, json, sys
from ardiff_engine import cli
from ardiff_engine.serve import app, command, connected, limits, server
patience, seconds = json.loads(sys.argv.pop(1))
command.Limits = functools.partial(limits.Limits, **seconds)
connected.LAST_WORDS_SECONDS = server.SESSION_SECONDS = patience
if "--ray" not in sys.argv:  # where it also says when a replica is taken for dead
    app.READY_SECONDS = patience
sys.exit(cli.console())
"""
PATIENT = {"start": PATIENCE, "resume": PATIENCE, "idle": 10 * PATIENCE, "longest": 10 * PATIENCE}


class ServerProcess:
    """url: http://127.0.0.1:PORT. errors: what it wrote to standard error."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http://" in line, (line, self.errors)
        self.url = line.rpartition(" at ")[2].strip()
        self.socket = self.url.replace("http", "ws") + "/v1/realtime/video"

    @property
    def errors(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """By SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def running(
    model: Path,
    data: Path,
    *options: str,
    env: dict[str, str] | None = None,
    seconds: Mapping[str, float] = PATIENT,
) -> Iterator[ServerProcess]:
    """Killed at the end of the block, if it was not stopped. seconds: fields of its `Limits`."""
    command = [sys.executable, "-c", SERVE, json.dumps([PATIENCE, dict(seconds)])]
    command += ["serve", "--model", model, "--port", "0", "--data", data, *options]
    log = data.with_suffix(".log")
    with (
        open(log, "a") as errors,
        started(command, env=env or {}, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        yield ServerProcess(process, log)
