# SPDX-License-Identifier: Apache-2.0
"""The router: a server as any other to its clients, without an engine of its own."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.ray.far_jobs import FarJobs
from ardiff_engine.serve.ray.replica import REPLICAS
from ardiff_engine.serve.ray.replicas import DIED, Replicas
from ardiff_engine.serve.serving import Serving


class Cluster(Serving):
    """From its making to `close`, the replicas run."""

    def __init__(self, options: argparse.Namespace, limits: Limits) -> None:
        super().__init__(Path(options.model).name, Path(options.data), limits)
        self.replicas = Replicas(options, limits)
        facts = self.replicas.facts()
        self.takes, self.actions, self.system = facts["takes"], facts["actions"], facts["system"]
        model = self.name, self.system, facts["weights"]
        self.jobs: FarJobs = FarJobs(self.replicas.make, DIED, model, self.store, limits)
        self.jobs.resume(self.store.recover())

    def close(self) -> None:
        self.jobs.close(self.limits.grace)
        self.callers.shutdown(cancel_futures=True)
        self.replicas.close()
        shutil.rmtree(self.store.folder / REPLICAS, ignore_errors=True)
        self.store.close()

    def ready(self, within: float) -> dict[str, Any] | None:
        """Sums over the replicas that answer."""
        found = self.replicas.stats()
        if not found:
            return None
        return {"replicas": len(found), **{name: sum(own[name] for own in found) for name in found[0]}}

    def register(self, registry: CollectorRegistry) -> object:
        answering = Gauge("ardiff_serve_replicas", "Replicas that answer.", registry=registry)
        answering.set_function(lambda: len(self.replicas.stats()))
        return answering
