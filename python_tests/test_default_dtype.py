# SPDX-License-Identifier: Apache-2.0
"""A default dtype that other code has set changes nothing: kernels write float32 whatever it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_engine import engine_for

from ardiff_engine import ops
from ardiff_engine.engine import Request
from ardiff_engine.memory import Window


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_ops(default_dtype: torch.dtype) -> None:
    keys = torch.arange(15).reshape(3, 5)
    weight, x = torch.randn(70, 40), torch.randn(6, 40)

    def results() -> list[torch.Tensor]:
        return [
            ops.philox_normal(keys, 1000),
            ops.linear(x, ops.pack_linear(weight), gelu=True),
            ops.sample_timesteps(batch=8, num_frames=6, num_timesteps=100, rule="fopp", seed=3),
        ]

    expected = results()
    torch.set_default_dtype(default_dtype)
    for got, want in zip(results(), expected, strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_an_engine(default_dtype: torch.dtype, guidance_scale: float) -> None:
    """With noise in its steps, so that every kernel of a pass runs."""

    def video(dtype: torch.dtype) -> torch.Tensor:
        engine = engine_for(steps=4, memory=Window(3), max_pages=100)
        torch.set_default_dtype(dtype)
        stream = engine.submit(Request(num_frames=4, lag=2, seed=1, guidance_scale=guidance_scale))
        return stream.result()

    expected = video(torch.float32)
    assert torch.equal(video(default_dtype), expected)
