# SPDX-License-Identifier: Apache-2.0
"""A server process of `ardiff serve`, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for extra in ("fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "av"):
    pytest.importorskip(extra, reason="needs the extra serve")

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """url: http://127.0.0.1:PORT. errors: what it wrote to standard error."""

    def __init__(self, model: Path, data: Path, *options: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._log = data.with_suffix(".log")
        command = [sys.executable, "-m", "ardiff_engine.cli", "serve", "--model", str(model), "--port", "0"]
        command += ["--data", str(data), *options]
        with open(self._log, "a") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http://" in line, (line, self.errors)
        self.url = line.rpartition(" at ")[2].strip()
        self.socket = self.url.replace("http", "ws") + "/v1/realtime/video"

    @property
    def errors(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """By SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)


@contextlib.contextmanager
def running(model: Path, data: Path, *options: str) -> Iterator[ServerProcess]:
    server = ServerProcess(model, data, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
