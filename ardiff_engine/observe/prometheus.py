# SPDX-License-Identifier: Apache-2.0
"""`Engine.stats()` as Prometheus metrics. Needs the extra `metrics` (prometheus-client)."""

from __future__ import annotations

import dataclasses
import math
import re
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ardiff_engine.errors import BackendNotAvailableError, ConfigError, explain

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from ardiff_engine.engine.engine import Engine

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclasses.dataclass(frozen=True, slots=True)
class _Metric:
    """name: after the prefix, with its unit. Counters only grow; Prometheus appends _total to their names."""

    name: str
    counter: bool
    text: str


METRICS = {
    "streams_running": _Metric("streams_running", False, "Streams that are being generated."),
    "streams_waiting": _Metric("streams_waiting", False, "Streams that wait for pages."),
    "streams_suspended": _Metric("streams_suspended", False, "Streams whose pages lie in host memory."),
    "streams_finished": _Metric("streams_finished", True, "Streams that were generated to their end."),
    "streams_cancelled": _Metric("streams_cancelled", True, "Streams given up by their readers."),
    "streams_failed": _Metric("streams_failed", True, "Streams that ended with an error."),
    "pages_free": _Metric("pages_free", False, "Pages of the pool that no stream holds."),
    "pages_held": _Metric("pages_held", False, "Pages of the pool that streams hold."),
    "pages_promised": _Metric("pages_promised", False, "The most pages that the admitted streams can need."),
    # Not pages_total: that ending belongs to counters.
    "pages_total": _Metric("pages_capacity", False, "Pages of the pool."),
    "passes": _Metric("passes", True, "Passes over the running streams."),
    "cells": _Metric("cells", True, "Cells fed: frames at one noise level, branches of guidance counted."),
    "updates": _Metric("updates", True, "Solver steps of frames."),
    "frames": _Metric("frames", True, "Frames that became clean."),
    "seconds": _Metric("step_seconds", True, "Wall time inside step()."),
    "planning_seconds": _Metric("planning_seconds", True, "Part of it before and after the network."),
    "first_frame_seconds": _Metric(
        "first_frame_seconds", False, "Time from submission to the first clean frame, of the first stream."
    ),
    "passes_retried": _Metric("passes_retried", True, "Passes that raised and were run again."),
    "graphs_captured": _Metric("graphs_captured", True, "Passes recorded as CUDA graphs."),
    "graph_replays": _Metric("graph_replays", True, "Passes that repeated a CUDA graph."),
    "eager_passes": _Metric("eager_passes", True, "Passes that ran kernel by kernel."),
    "exact": _Metric("exact", False, "1 if outputs equal the plain algorithm of the memory policy."),
}
SKIPPED = frozenset({"cells_per_second", "cells_per_pass", "eager_reason"})
"""Text, and averages since the start: rate(ardiff_cells_total[1m]) / rate(ardiff_step_seconds_total[1m])."""


class StatsCollector:
    """Asks the engine at every scrape. Holds it weakly: once it is gone, there are no metrics of it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = weakref.ref(engine)
        self._name = name

    def collect(self) -> Iterator[Metric]:
        """The metrics that have a value now."""
        return (family for family in self.describe() if family.samples)

    def describe(self) -> Iterator[Metric]:
        """All metrics, also those without a value yet: the registry keeps their names free of others."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        engine = self._engine()
        if engine is None:
            return
        stats = engine.stats()
        for field in dataclasses.fields(stats):
            value = getattr(stats, field.name)
            number = isinstance(value, int | float) and not math.isnan(value)
            # What is neither listed nor a number makes no metric; what is listed may be None for a while.
            if field.name in SKIPPED or (field.name not in METRICS and not number):
                continue
            metric = METRICS.get(field.name) or _unlisted(field.name)
            family = CounterMetricFamily if metric.counter else GaugeMetricFamily
            yield family(f"{self._name}_{metric.name}", metric.text, value=float(value) if number else None)


def register(
    engine: Engine, registry: CollectorRegistry | None = None, name: str = "ardiff"
) -> StatsCollector:
    """Expose the engine's stats in `registry` (None: the default one) as metrics that begin with `name`.

    Two engines of one registry need different names; a name is free again after `registry.unregister` of what
    is returned.

    BackendNotAvailableError: prometheus-client is missing. ConfigError: a name that is taken, or is none.
    """
    default = _default_registry()
    if not NAME.fullmatch(name):
        raise ConfigError(
            explain(
                "name of the metrics",
                got=repr(name),
                expected="letters, digits and _, no digit first",
                fix="Change the name.",
            )
        )
    collector = StatsCollector(engine, name)
    try:
        (registry if registry is not None else default).register(collector)
    except ValueError as error:
        raise ConfigError(
            explain(
                "metrics of an engine",
                got=str(error),
                expected=f"a registry without metrics named {name}_...",
                fix="Give each engine its own name, or unregister the older one.",
            )
        ) from error
    return collector


def _unlisted(field: str) -> _Metric:
    # A gauge is true of any number, and no gauge's name may end as those of counters do.
    name = field.removesuffix("_total")
    return _Metric(name, False, f"EngineStats.{field}.")


def _default_registry() -> CollectorRegistry:
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise BackendNotAvailableError(
            explain(
                "Prometheus metrics",
                got="no package prometheus-client",
                expected="the extra `metrics`",
                fix="pip install prometheus-client.",
            )
        ) from error
    return REGISTRY
