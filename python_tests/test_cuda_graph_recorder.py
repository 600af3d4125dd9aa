# SPDX-License-Identifier: Apache-2.0
"""Graphs recorded on a GPU: on a stream of their own, from one pool.

CUDA is a stand-in.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ardiff_engine.engine.cuda.graphs import CudaGraphs


@pytest.fixture
def cuda_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order of calls that `CudaGraphs` makes, on a stand-in for torch.cuda."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def graph(recorded, *, pool, stream, capture_error_mode):
        calls.append(f"capture on {stream.name}, pool {pool}, {capture_error_mode}")
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture") from None

    @contextmanager
    def use(stream):
        yield
        calls.append(f"leave {stream.name}")

    recorded = SimpleNamespace(replay=lambda: calls.append("replay"))
    stand_in = {
        "Stream": lambda device, priority: Stream(f"side of priority {priority}"),
        "current_stream": lambda device: Stream("main"),
        "stream": use,
        "synchronize": lambda device: calls.append("wait"),
        "graph_pool_handle": lambda: 7,
        "graph": graph,
        "CUDAGraph": lambda: recorded,
    }
    for name, value in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return calls


SIDE = "side of priority -1"


def test_cuda_graphs_record_on_a_stream_of_their_own_from_one_pool(cuda_calls):
    graphs = CudaGraphs(torch.device("cuda", 0))
    graphs.warm_up(lambda: cuda_calls.append("tick"))
    assert cuda_calls == [f"{SIDE} waits for main", "tick", f"leave {SIDE}", f"main waits for {SIDE}"]
    cuda_calls.clear()
    replays = [graphs.record(lambda: cuda_calls.append("tick")) for _ in range(2)]
    assert cuda_calls == [f"capture on {SIDE}, pool 7, thread_local", "tick", "leave main"] * 2
    replays[1]()
    assert cuda_calls[-1] == "replay"


def test_a_recording_that_fails_says_why(cuda_calls):
    """The end of a capture that was broken raises, too, and hides what broke it."""

    def breaks() -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")

    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_NOT_INITIALIZED"):
        CudaGraphs(torch.device("cuda", 0)).record(breaks)


def test_nobody_waits_for_a_whole_device_while_a_tick_is_recorded(cuda_calls):
    """CUDA refuses that, and the recording would be lost: of another engine in another thread, say."""
    graphs, started, waits = CudaGraphs(torch.device("cuda", 0)), threading.Event(), []

    def other() -> None:
        started.set()
        CudaGraphs(torch.device("cuda", 0)).wait()

    def tick() -> None:
        waits.append(threading.Thread(target=other))
        waits[0].start()
        started.wait()
        waits[0].join(0.2)
        cuda_calls.append("tick")

    graphs.record(tick)
    waits[0].join()
    assert cuda_calls.index("tick") < cuda_calls.index("leave main") < cuda_calls.index("wait")
