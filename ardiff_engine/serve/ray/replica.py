# SPDX-License-Identifier: Apache-2.0
"""One replica: an engine with all that `ardiff serve` has around it, in a process of Ray Serve.

A video is a call, which yields what becomes of it and at last its file. So Ray chooses the replica, and the
caller learns at once when its process has died. Live sessions are WebSockets of the replica's own server:
only a connection makes a replica wait for its reader. A call is held beside each of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray

from ardiff_engine.errors import ArdiffError
from ardiff_engine.serve.app import READY_SECONDS, create_app
from ardiff_engine.serve.errors import api_error
from ardiff_engine.serve.gate import key_digest
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.load import load_model
from ardiff_engine.serve.ray.replayed import Replayed
from ardiff_engine.serve.server import Server, server_config
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import Wish

OWNER = "cluster"
REPLICAS = "replicas"
PIECE = 1 << 16
"""Bytes of a file in one message: larger ones would go through Ray's store of objects."""
LOOK_SECONDS = 0.05


def own_folder(data: Path) -> Path:
    """For the files of this process, in `data`. Those of processes of this machine that are gone are removed:
    a replica that is killed leaves its own."""
    folder = data / REPLICAS / socket.gethostname()
    for other in folder.glob("*"):
        if other.name == str(os.getpid()) or not Path(f"/proc/{other.name}").exists():
            shutil.rmtree(other, ignore_errors=True)
    return folder / str(os.getpid())


class Replica:
    """options: of `ardiff serve`, with the folder that paths are meant in. far: whether the router may be on
    another machine. key: that it has."""

    def __init__(self, options: argparse.Namespace, limits: Limits, far: bool, key: str) -> None:
        host = ray.util.get_node_ip_address() if far else "127.0.0.1"
        if os.path.isdir(options.folder):
            os.chdir(options.folder)
        self._service = Service(load_model(options, limits), own_folder(Path(options.data)), limits)
        app = create_app(self._service, [key_digest(key)], partial(Replayed, self._service))
        config = server_config(app, self._service, host, 0)
        config.ws_ping_interval = None  # a router that waits for its reader takes no ping
        self._server = Server(config, self._service, quiet=True)
        self._thread = threading.Thread(target=self._server.run, name="ardiff-serve-replica", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise ArdiffError(f"a replica cannot listen at {host}")
            self._thread.join(0.02)

    async def check_health(self) -> None:
        """Ray replaces a replica that raises here a few times."""
        if not self._thread.is_alive() or await asyncio.to_thread(self.stats) is None:
            raise ArdiffError(f"no pass has ended for {READY_SECONDS:.0f} s")

    def stats(self) -> dict[str, Any] | None:
        return self._service.ready(READY_SECONDS)

    def facts(self) -> dict[str, Any]:
        """What the router tells of the model."""
        model = self._service.model
        told = ("system", "takes", "actions", "weights")
        return {name: getattr(model, name) for name in told}

    async def session(self) -> AsyncIterator[str]:
        """The address of its WebSocket. Held as long as a session is open, so that Ray counts it."""
        yield f"ws://{self._server.address}/v1/realtime/video"
        await asyncio.Event().wait()

    async def make(self, wish: Wish) -> AsyncIterator[tuple[str, Any]]:
        """("refused", an ApiError's fields), or ("accepted", the request), ("progress", per cent) again and
        again, and ("failed", why) or ("data", bytes) of the file until it is whole."""
        jobs, store = self._service.jobs, self._service.store
        try:
            job = await asyncio.to_thread(jobs.create, wish, OWNER)
        except Exception as error:
            yield "refused", asdict(api_error(error))
            return
        try:
            yield "accepted", job.request
            told = -1
            while (live := jobs.live(job.id)) is not None and not live.ended.done():
                if live.started and live.progress != told:
                    told = live.progress
                    yield "progress", told
                await asyncio.sleep(LOOK_SECONDS)
            found = store.get(job.id, OWNER)
            if found is None or found.status != "completed":
                yield "failed", "its record is gone" if found is None else found.error
                return
            with open(store.file(job.id), "rb") as file:
                while piece := file.read(PIECE):
                    yield "data", piece
        finally:
            self._service.callers.submit(jobs.remove, job.id)
