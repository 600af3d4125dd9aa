# SPDX-License-Identifier: Apache-2.0
"""The packed linear layer against torch.nn.functional.linear, and with GELU against linear and gelu.

The four layers of a block of width 384, at the rows of 1, 4 and 16 frames of 32 tokens. Eight weights of each
shape take turns, as in a network of depth 8: one alone would stay in the caches. Convention:
benchmarks/README.md.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine import ops

DEPTH = 8
SHAPES = {
    "qkv": (384, 1152, False),
    "proj": (384, 384, False),
    "fc1": (384, 1536, True),
    "fc2": (1536, 384, False),
}


@torch.no_grad()
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("rows", [32, 128, 512])
@pytest.mark.parametrize("layer", SHAPES)
def test_forward(benchmark: BenchmarkFixture, layer: str, rows: int, threads: int) -> None:
    inputs, outputs, gelu = SHAPES[layer]
    x, bias = torch.randn(rows, inputs), torch.randn(outputs)
    weights = [torch.randn(outputs, inputs) * inputs**-0.5 for _ in range(DEPTH)]
    packed = [ops.pack_linear(weight) for weight in weights]

    def plain() -> None:
        for weight in weights:
            y = torch.nn.functional.linear(x, weight, bias)
            if gelu:
                torch.nn.functional.gelu(y, approximate="tanh")

    def ours() -> None:
        for weight in packed:
            ops.linear(x, weight, bias, gelu=gelu)

    row = Row(
        op="linear + gelu" if gelu else "linear",
        shape=f"{rows} x {inputs} -> {outputs}",
        threads=threads,
        opponent="linear, gelu" if gelu else "linear",
        flops=2 * rows * inputs * outputs * DEPTH,
    )
    versus(benchmark, row, ours, plain)
