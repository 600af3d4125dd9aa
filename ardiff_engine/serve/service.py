# SPDX-License-Identifier: Apache-2.0
"""What all requests to one engine share: the model, its videos on disk, the live sessions, and the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ardiff_engine.observe import prometheus
from ardiff_engine.serve.jobs import Jobs
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.order import ServedModel
from ardiff_engine.serve.serving import Serving
from ardiff_engine.serve.stage import Stage

READY = ("streams_running", "streams_waiting", "pages_free", "pages_held", "pages_total", "passes")


class Service(Serving):
    """From its making to `close`, the thread of the engine runs."""

    def __init__(self, model: ServedModel, data: Path, limits: Limits) -> None:
        super().__init__(model.name, data, limits)
        self.model, self.takes, self.actions = model, model.takes, model.actions
        unfinished = self.store.recover()
        self.stage = Stage(model.codec)
        self.jobs: Jobs = Jobs(model, self.stage, self.store, limits)
        self._running = model.engine.running()
        self._running.__enter__()
        self.jobs.resume(unfinished)

    def close(self) -> None:
        self.jobs.close(self.limits.grace)
        self._running.__exit__(None, None, None)
        self.callers.shutdown(cancel_futures=True)
        self.stage.close()
        self.store.close()

    def ready(self, within: float) -> dict[str, Any] | None:
        """The engine answers between two passes."""
        future = self.callers.submit(self.model.engine.stats)
        try:
            stats = future.result(within)
        except TimeoutError:
            return None
        return {name: getattr(stats, name) for name in READY}

    def register(self, registry: CollectorRegistry) -> object:
        return prometheus.register(self.model.engine, registry)
