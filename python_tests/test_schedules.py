# SPDX-License-Identifier: Apache-2.0
"""A solver that does not fit into memory changes nothing for the streams that run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest
import torch
from test_ar_diffusion import tiny
from test_engine import SCHEDULE

from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.models.protocol import Tables


def ddim(steps: int) -> solvers.Solver:
    return solvers.DDIM(SCHEDULE, num_inference_steps=steps)


def fails(calls: Callable[..., object], at: int) -> Callable[..., object]:
    """`calls`, but its `at`-th call from now runs out of memory."""
    left = [at]

    def call(*args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError("injected")
        return calls(*args, **kwargs)

    return call


@pytest.mark.parametrize(("owner", "name"), [(Tables, "joined"), (torch, "cat"), (torch.Tensor, "to")])
def test_running_streams_go_on_when_memory_is_short(
    owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is short at each call of these functions in turn."""
    model = tiny("separate_norm", "temporal_causal", "rope")
    requests = [Request(num_frames=4, lag=3, seed=i, solver=ddim(steps)) for i, steps in enumerate((3, 5, 7))]
    large = Request(num_frames=4, lag=3, seed=9, solver=ddim(11))

    def engine() -> Engine:
        return Engine(model, solver=ddim(4), memory=Window(8), max_pages=300)

    want = [engine().submit(request).result() for request in (*requests[1:], large)]
    for at in itertools.count(1):
        built = engine()
        # The first solver has no users left when the large one comes: its rows are the ones that go.
        gone = built.submit(requests[0])
        streams = [built.submit(request) for request in requests[1:]]
        gone.cancel()
        built.step()
        with monkeypatch.context() as patch, contextlib.suppress(MemoryError):
            patch.setattr(owner, name, fails(getattr(owner, name), at))
            built.submit(large)
            break
        built.step()
        streams.append(built.submit(large))
        for stream, expected in zip(streams, want, strict=True):
            torch.testing.assert_close(stream.result(), expected)
    assert at > 1
