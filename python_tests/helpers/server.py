# SPDX-License-Identifier: Apache-2.0
"""A server process of `ardiff serve`, for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import started
from helpers.waiting import PATIENCE

for extra in ("fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "av"):
    pytest.importorskip(extra, reason="needs the extra serve")


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
    model: Path, data: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Killed at the end of the block, if it was not stopped."""
    command = [sys.executable, "-m", "ardiff_engine.cli", "serve", "--model", model, "--port", "0"]
    command += ["--data", data, *options]
    log = data.with_suffix(".log")
    with (
        open(log, "a") as errors,
        started(command, env=env or {}, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        yield ServerProcess(process, log)
