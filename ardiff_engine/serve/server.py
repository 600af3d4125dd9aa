# SPDX-License-Identifier: Apache-2.0
"""The process that listens: uvicorn, which stops whole."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from ardiff_engine.serve.serving import Serving

SESSION_SECONDS, CONNECTION_SECONDS = 2.0, 2
"""That a stop waits for sessions, then for connections. With `Limits.grace` after them, it is less than the
ten seconds after which `docker stop` kills."""
UNREAD_MILLISECONDS = 600_000
"""After which a connection is gone whose peer takes nothing: closing it would wait for him for ever."""


def server_config(app: FastAPI, service: Serving, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # addresses may hold what is nobody's business
        ws_max_size=service.limits.message,
        # Longer than clients keep an idle connection (httpx: 5 s): else it is closed while it is used.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=min(CONNECTION_SECONDS, round(service.limits.grace)),
        server_header=False,
        lifespan="off",
    )


class Server(uvicorn.Server):
    """Says where it listens, and tells its sessions before it closes their connections."""

    def __init__(self, config: uvicorn.Config, service: Serving, quiet: bool) -> None:
        super().__init__(config)
        self._service, self._quiet = service, quiet

    @property
    def address(self) -> str:
        """HOST:PORT, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        for listening in (own for server in self.servers for own in server.sockets):
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; connections inherit it
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
        if not self.should_exit and not self._quiet:
            print(f"ardiff serve: {self._service.name} at http://{self.address}", flush=True)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        for session in list(self._service.sessions):
            session.stopping.set()
        until = asyncio.get_running_loop().time() + SESSION_SECONDS
        while self._service.sessions and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)  # type: ignore[arg-type]
