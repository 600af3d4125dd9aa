# SPDX-License-Identifier: Apache-2.0
"""`ardiff serve`: loads the model, opens the port, and stops whole on SIGTERM and Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

import torch
import uvicorn

from ardiff_engine.pipeline import Pipeline
from ardiff_engine.pipeline.text_to_video import TextToVideoPipeline
from ardiff_engine.serve.app import create_app
from ardiff_engine.serve.gate import check_host, read_keys
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.service import Service

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Server(uvicorn.Server):
    """Says where it listens, and tells its sessions before it closes their connections."""

    def __init__(self, config: uvicorn.Config, service: Service, quiet: bool) -> None:
        super().__init__(config)
        self._service, self._quiet = service, quiet

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if not self.should_exit and not self._quiet:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"ardiff serve: {self._service.model.name} at http://{shown}:{port}", flush=True)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        for session in list(self._service.sessions):
            session.stopping.set()
        until = asyncio.get_running_loop().time() + 2.0
        while self._service.sessions and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)  # type: ignore[arg-type]


def serve(options: argparse.Namespace) -> int:
    """Until a signal comes."""
    limits = Limits(streams=options.streams, queue=options.queue, seconds=options.seconds)
    keys = [] if options.api_key_file is None else read_keys(Path(options.api_key_file))
    check_host(options.host, keys)
    arguments = {"device": options.device, "dtype": DTYPES[options.dtype]}
    pipe: Pipeline | TextToVideoPipeline
    if options.system is None:
        pipe = Pipeline.from_pretrained(options.model, **arguments)
    else:
        parts = {part: getattr(options, part) for part in ("transformer", "vae", "text", "lora", "tile")}
        pipe = Pipeline.from_pretrained(options.model, system=options.system, **arguments, **parts)
    name = Path(options.model).name
    model = served_model(name, pipe, limits, *(() if options.size is None else (options.size,)))
    service = Service(model, Path(options.data), limits)
    config = uvicorn.Config(
        create_app(service, keys),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,  # addresses may hold what is nobody's business
        ws_max_size=limits.message,
        # Longer than clients keep an idle connection (httpx: 5 s): else it is closed while it is used.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(limits.grace),
        server_header=False,
        lifespan="off",
    )
    logging.getLogger("ardiff_engine.serve").setLevel(logging.INFO)
    try:
        Server(config, service, options.quiet).run()
    finally:
        service.close()
    return 0
