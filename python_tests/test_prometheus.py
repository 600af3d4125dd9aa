# SPDX-License-Identifier: Apache-2.0
"""Metrics of an engine: names, kinds and values as Prometheus reads them."""

from __future__ import annotations

import dataclasses
import gc
import sys
from typing import Any

import pytest

import ardiff_engine as ade
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import EngineStats
from ardiff_engine.errors import BackendNotAvailableError, ConfigError
from ardiff_engine.observe import prometheus

client = pytest.importorskip("prometheus_client", reason="needs the extra `metrics`")


class Counting:
    """An engine as far as its metrics are concerned."""

    def __init__(self, **values: Any) -> None:
        self.values = {
            "streams_running": 2,
            "streams_finished": 1,
            "pages_free": 5,
            "pages_held": 11,
            "pages_total": 16,
            "passes": 40,
            "cells": 200,
            "updates": 180,
            "frames": 9,
            "seconds": 2.5,
            "cells_per_second": 80.0,
            "first_frame_seconds": 0.25,
            "exact": True,
        } | values

    def stats(self) -> Any:
        kind = dataclasses.make_dataclass("Stats", list(self.values))
        return kind(**self.values)


@pytest.fixture
def registry() -> Any:
    return client.CollectorRegistry()


def samples(registry: Any) -> dict[str, float]:
    """What a Prometheus server reads, through the text format and its parser."""
    from prometheus_client.parser import text_string_to_metric_families

    text = client.generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_names_and_values(registry):
    engine = Counting()
    prometheus.register(engine, registry)
    assert samples(registry) == {
        "ardiff_streams_running": 2,
        "ardiff_streams_finished_total": 1,
        "ardiff_pages_free": 5,
        "ardiff_pages_held": 11,
        "ardiff_pages_capacity": 16,
        "ardiff_passes_total": 40,
        "ardiff_cells_total": 200,
        "ardiff_updates_total": 180,
        "ardiff_frames_total": 9,
        "ardiff_step_seconds_total": 2.5,
        "ardiff_first_frame_seconds": 0.25,
        "ardiff_exact": 1,
    }


def test_every_scrape_asks_the_engine(registry):
    engine = Counting()
    prometheus.register(engine, registry)
    engine.values |= {"frames": 10, "exact": False}
    assert samples(registry)["ardiff_frames_total"] == 10 and samples(registry)["ardiff_exact"] == 0


def test_the_stricter_format_of_openmetrics_takes_them_too(registry):
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    engine = Counting(streams_asleep=3, bytes_total=7)
    prometheus.register(engine, registry)
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}
    assert families["ardiff_frames"].type == "counter" and families["ardiff_pages_free"].type == "gauge"
    assert all(family.documentation for family in families.values())
    assert families["ardiff_bytes"].samples[0].value == 7


def test_what_has_no_value_is_left_out_until_it_has_one(registry):
    engine = Counting(first_frame_seconds=None)
    prometheus.register(engine, registry)
    assert "ardiff_first_frame_seconds" not in samples(registry)
    engine.values["first_frame_seconds"] = 0.5
    assert samples(registry)["ardiff_first_frame_seconds"] == 0.5


def test_fields_that_are_new_appear_and_fields_that_are_gone_do_not_matter(registry):
    engine = Counting(streams_asleep=3, note="hello", shares={"a": 1}, ratio=float("nan"))
    del engine.values["updates"]
    prometheus.register(engine, registry)
    found = samples(registry)
    assert found["ardiff_streams_asleep"] == 3 and "ardiff_updates_total" not in found
    assert not {name for name in found if "note" in name or "shares" in name or "ratio" in name}


def test_every_field_has_a_name_and_a_kind():
    """A field that is not listed would be exposed as a gauge, and renamed when somebody lists it."""
    fields = {field.name for field in dataclasses.fields(EngineStats)}
    assert fields == set(prometheus.METRICS) | prometheus.SKIPPED


def test_two_engines_need_two_names(registry):
    first, second = Counting(), Counting(frames=1, first_frame_seconds=None)
    collector = prometheus.register(first, registry)
    with pytest.raises(ConfigError, match="own name"):
        prometheus.register(second, registry)
    prometheus.register(second, registry, name="preview")
    assert samples(registry)["ardiff_frames_total"] == 9 and samples(registry)["preview_frames_total"] == 1
    registry.unregister(collector)
    prometheus.register(second, registry)
    assert samples(registry)["ardiff_frames_total"] == 1


def test_metrics_do_not_keep_an_engine_alive(registry):
    engine = Counting()
    prometheus.register(engine, registry)
    del engine
    gc.collect()
    assert samples(registry) == {}


def test_without_a_registry_the_default_one_is_used():
    engine = Counting()
    collector = prometheus.register(engine, name="ardiff_test_default")
    try:
        assert samples(client.REGISTRY)["ardiff_test_default_frames_total"] == 9
    finally:
        client.REGISTRY.unregister(collector)


@pytest.mark.parametrize("name", ["", "9lives", "a-b", "a b", "é", "a\n"])
def test_names_that_prometheus_refuses(registry, name):
    with pytest.raises(ConfigError, match="metrics"):
        prometheus.register(Counting(), registry, name=name)


def test_without_the_package_it_is_a_typed_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BackendNotAvailableError, match="metrics"):
        prometheus.register(Counting())


def test_the_engine_itself(tiny_model, registry):
    pipe = ade.Pipeline.from_pretrained(tiny_model)
    solver = DDIM(pipe.schedule, 4, prediction=pipe.prediction)
    engine = ade.Engine(pipe.transformer, solver=solver, max_pages=64)
    prometheus.register(engine, registry)
    before = samples(registry)
    engine.submit(ade.Request(num_frames=6, lag=2)).result()
    after = samples(registry)
    assert before["ardiff_frames_total"] == 0 and after["ardiff_frames_total"] == 6
    assert before["ardiff_pages_capacity"] == after["ardiff_pages_free"] == 64
    assert after["ardiff_passes_total"] == engine.stats().passes > 0
    assert "ardiff_first_frame_seconds" in after
