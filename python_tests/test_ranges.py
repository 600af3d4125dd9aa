# SPDX-License-Identifier: Apache-2.0
"""Ranges: seen by torch.profiler and by NVTX, balanced after errors, nothing at all when both are off."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator

import pytest
import torch

from ardiff_engine import ranges
from ardiff_engine.errors import ConfigError
from ardiff_engine.ranges import annotate


@pytest.fixture(autouse=True)
def unread_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variable is read once per process; every test here reads it anew, and nothing stays behind."""
    monkeypatch.delenv("ARDIFF_NVTX", raising=False)
    ranges._nvtx_marks.cache_clear()
    yield
    ranges._nvtx_marks.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stand-in for the package `nvtx` was told."""
    said: list[str] = []
    package = types.SimpleNamespace(
        push_range=lambda name: said.append(f"push {name}"), pop_range=lambda: said.append("pop")
    )
    monkeypatch.setitem(sys.modules, "nvtx", package)
    return said


def profiled_names(work) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    return [event.name for event in profiler.events() if event.name.startswith("ardiff.")]


def nested() -> None:
    with annotate("ardiff.model"), annotate("ardiff.layers"):
        torch.ones(2) + 1


def test_a_profiler_sees_every_range_once():
    assert sorted(profiled_names(nested)) == ["ardiff.layers", "ardiff.model"]


def test_a_range_holds_the_work_inside_it():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        nested()
        torch.ones(2) * 2
    spans = {event.name: event.time_range for event in profiler.events()}
    outer, inner = spans["ardiff.model"], spans["ardiff.layers"]
    assert outer.start <= inner.start <= spans["aten::add"].start
    assert spans["aten::add"].end <= inner.end <= outer.end <= spans["aten::mul"].start


def test_off_is_one_shared_block_that_does_nothing(calls):
    assert annotate("ardiff.plan") is annotate("ardiff.pack")
    nested()
    assert calls == []


@pytest.mark.parametrize("value", ["0", ""])
def test_nvtx_can_be_switched_off(monkeypatch, calls, value):
    monkeypatch.setenv("ARDIFF_NVTX", value)
    nested()
    assert calls == []


def test_nvtx_ranges_nest(monkeypatch, calls):
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    nested()
    assert calls == ["push ardiff.model", "push ardiff.layers", "pop", "pop"]


def test_both_at_once(monkeypatch, calls):
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    assert len(profiled_names(nested)) == 2 and len(calls) == 4


def test_an_exception_closes_the_range_and_passes(monkeypatch, calls):
    monkeypatch.setenv("ARDIFF_NVTX", "1")

    def explode() -> None:
        with pytest.raises(ZeroDivisionError), annotate("ardiff.decode"):
            raise ZeroDivisionError

    assert profiled_names(explode) == ["ardiff.decode"]
    assert calls == ["push ardiff.decode", "pop"]


def test_a_profiler_that_stops_inside_a_range_leaves_it_balanced(monkeypatch, calls):
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    profiler.start()
    with annotate("ardiff.model"):
        profiler.stop()
    assert calls == ["push ardiff.model", "pop"]
    assert profiled_names(nested) == ["ardiff.model", "ardiff.layers"]


def test_other_threads_reach_nvtx(monkeypatch, calls):
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    worker = threading.Thread(target=nested)
    worker.start()
    worker.join()
    assert len(calls) == 4


def test_without_the_package_the_cuda_build_of_torch_is_used(monkeypatch):
    said: list[str] = []
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", said.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("pop"))
    nested()
    assert said == ["ardiff.model", "ardiff.layers", "pop", "pop"]


def test_asking_for_nvtx_where_there_is_none_warns_once(monkeypatch):
    monkeypatch.setenv("ARDIFF_NVTX", "1")
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(RuntimeWarning, match="no effect") as caught:
        nested()
        nested()
    assert len(caught) == 1


def test_a_wrong_value_is_a_typed_error(monkeypatch):
    monkeypatch.setenv("ARDIFF_NVTX", "yes")
    with pytest.raises(ConfigError, match="ARDIFF_NVTX"):
        annotate("ardiff.plan")
