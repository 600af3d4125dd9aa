# SPDX-License-Identifier: Apache-2.0
"""`ardiff serve`: loads the model, opens the port, and stops whole on SIGTERM and Ctrl-C."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from starlette.websockets import WebSocket

from ardiff_engine.errors import BackendNotAvailableError, ConfigError
from ardiff_engine.serve.app import create_app
from ardiff_engine.serve.gate import check_host, read_keys
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.load import load_model
from ardiff_engine.serve.realtime import Realtime
from ardiff_engine.serve.server import Server, server_config
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.serving import Serving, Session


def serve(options: argparse.Namespace) -> int:
    """Until a signal comes."""
    limits = Limits(streams=options.streams, queue=options.queue, seconds=options.seconds)
    keys = [] if options.api_key_file is None else read_keys(Path(options.api_key_file))
    check_host(options.host, keys)
    logging.getLogger("ardiff_engine.serve").setLevel(logging.INFO)
    service, connect = _one(options, limits) if options.ray is None else _several(options, limits)
    try:
        app = create_app(service, keys, connect)
        Server(server_config(app, service, options.host, options.port), service, options.quiet).run()
    finally:
        service.close()
    return 0


Made = tuple[Serving, Callable[[WebSocket, str], Session]]


def _one(options: argparse.Namespace, limits: Limits) -> Made:
    service = Service(load_model(options, limits), Path(options.data), limits)
    return service, partial(Realtime, service)


def _several(options: argparse.Namespace, limits: Limits) -> Made:
    if options.ray < 1:
        raise ConfigError(f"--ray {options.ray}: give the number of engines, 1 or more")
    try:
        from ardiff_engine.serve.ray.cluster import Cluster
        from ardiff_engine.serve.ray.relay import Relay
    except ImportError as error:
        raise BackendNotAvailableError(
            f"ardiff serve --ray: got no package {error.name}, expected the extra `cluster`. Install it by "
            "pip install '.[cluster]' in the source checkout."
        ) from error
    cluster = Cluster(options, limits)
    return cluster, partial(Relay, cluster)
