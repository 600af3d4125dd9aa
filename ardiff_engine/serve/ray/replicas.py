# SPDX-License-Identifier: Apache-2.0
"""The replicas, as the router calls them. Ray Serve chooses one for a call, and replaces those that die."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import RequestCancelledError
from ray.serve.schema import LoggingConfig
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from ardiff_engine.serve.app import READY_SECONDS
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.ray.replica import Replica
from ardiff_engine.serve.wish import Wish

DIED = (RayActorError, WorkerCrashedError, ObjectLostError)
"""What a call raises when its replica has died."""
LOST = (*DIED, WebSocketException, OSError, TimeoutError)
"""What a session raises then."""
UNLIMITED = 1_000_000
QUIET = logging.ERROR
"""For Ray's own words: what they say of a replica that died, the router says itself, and once."""
OBJECT_STORE_BYTES = 96 << 20
"""Of a Ray that is started here. Nothing large goes through it."""


class Replicas:
    """Calls may be made in any event loop."""

    def __init__(self, options: argparse.Namespace, limits: Limits) -> None:
        """Returns when all of them can be called. A cluster that RAY_ADDRESS names is joined, else Ray is
        started on this machine."""
        self._key = secrets.token_hex(32)
        self._joined = "RAY_ADDRESS" in os.environ
        _start_ray(self._joined, options.ray)
        self._name = "ardiff-" + hashlib.sha256(os.path.abspath(options.data).encode()).hexdigest()[:8]
        # A session's limits are kept by the router; here they would only end it a second time.
        inner = replace(
            limits, per_key=UNLIMITED, stored=UNLIMITED, idle=UNLIMITED, longest=UNLIMITED, grace=0.0
        )
        deployment = serve.deployment(
            name="Replica",
            num_replicas=options.ray,
            max_ongoing_requests=UNLIMITED,  # the engine refuses what is too much for it, with the numbers
            health_check_period_s=5.0,
            health_check_timeout_s=READY_SECONDS + 5.0,
            graceful_shutdown_timeout_s=limits.grace,
            graceful_shutdown_wait_loop_s=0.5,
            ray_actor_options={"num_cpus": 1, "num_gpus": int(options.device.startswith("cuda"))},
            logging_config=LoggingConfig(log_level=QUIET, enable_access_log=False),
        )
        bound = deployment(Replica).bind(_plain(options), inner, self._joined, self._key)
        self._handle = serve.run(bound, name=self._name, route_prefix=None)
        self._calls = self._handle.options(stream=True)

    def close(self) -> None:
        serve.delete(self._name)
        if not self._joined:
            serve.shutdown()
        ray.shutdown()

    def stats(self) -> list[dict[str, Any]]:
        """Of those that answer; none while one of them is just dying."""
        try:
            found = self._handle.broadcast("stats").results(timeout_s=READY_SECONDS)
        except (*DIED, TimeoutError):
            return []
        return [own for own in found if own is not None]

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = self._handle.facts.remote().result()
        return found

    async def make(self, wish: Wish) -> AsyncIterator[tuple[str, Any]]:
        """As `Replica.make`. DIED: its process has."""
        call: Any = self._calls.make.remote(wish)
        try:
            async for answer in call:
                yield answer
        finally:
            call.cancel()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[ClientConnection]:
        """A WebSocket of one of them. LOST, also from its methods: the replica has died."""
        call: Any = self._calls.session.remote()
        try:
            headers = {"Authorization": f"Bearer {self._key}"}
            async with connect(
                await anext(call), additional_headers=headers, max_size=None, max_queue=4, ping_interval=None
            ) as socket:
                watch = asyncio.ensure_future(_until_it_dies(call, socket))
                try:
                    yield socket
                finally:
                    watch.cancel()
        finally:
            call.cancel()


async def _until_it_dies(call: AsyncIterator[Any], socket: ClientConnection) -> None:
    """A machine that is gone closes no connection."""
    try:
        await anext(call)
    except RequestCancelledError:
        return  # the session is over
    except (*LOST, StopAsyncIteration):
        socket.transport.abort()


def _start_ray(joins: bool, replicas: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if joins:
            ray.init(logging_level=QUIET)
        else:
            ray.init(
                num_cpus=max(replicas, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=QUIET,
            )
        serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level=QUIET))
        logging.getLogger("ray.serve").setLevel(QUIET)  # of this process, which `serve.start` sets to INFO
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray sets one that ends the process at once


def _plain(options: argparse.Namespace) -> argparse.Namespace:
    """What a replica needs of them."""
    names = ("model", "system", "transformer", "vae", "text", "lora", "tile", "size", "device", "dtype")
    kept = argparse.Namespace(**{name: getattr(options, name) for name in names})
    kept.data, kept.folder = os.path.abspath(options.data), os.getcwd()
    return kept
