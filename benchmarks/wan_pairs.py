# SPDX-License-Identifier: Apache-2.0
"""The sides of bench_wan.py and bench_wan_vae.py by processor time of one thread: for a machine that others
use as well.

    python benchmarks/wan_pairs.py NAME [--turns 3] [--json FILE]

small, wide: a block of the small network, of two layers of the 1.3B shape, against plain PyTorch, with a full
window. whole: all 30 layers, one clean block before; some ten minutes of processor time and 9 GB per turn.
pass: two such layers against diffusers' transformer. vae: a latent by the autoencoder, after others. linear:
layers of the 1.3B shape against torch.mm of 1024 x 1024 matrices, in FLOPs a second: `ratio` is the share of
the machine's rate. Sides take turns; the least times count.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from unittest import mock

import torch
from bench_wan import AGREES, BLOCK, BLOCKS, SMALL, OnePass, Sides
from bench_wan_vae import SIZES, decoders

from ardiff_engine import ops
from ardiff_engine.models import WanConfig

GEMM = 1024


class Rivals(Protocol):
    def ours(self) -> torch.Tensor: ...

    def theirs(self) -> torch.Tensor: ...


class Latents:
    """Latents of one size, decoded one after the other."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.decoders = decoders(SIZES[size])
        self.latent = torch.randn(1, 16, *size)

    def ours(self) -> torch.Tensor:
        return self.decoders[0].push(self.latent)

    def theirs(self) -> torch.Tensor:
        return self.decoders[1].push(self.latent)


def seconds(call: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    began = time.process_time()
    made = call()
    return time.process_time() - began, made


def measure(sides: Rivals, untimed: int, turns: int) -> dict[str, float]:
    """untimed: turns before; the first one is reported."""
    times: list[tuple[float, float]] = []
    for _ in range(untimed + turns):
        (own, ours), (other, theirs) = seconds(sides.ours), seconds(sides.theirs)
        assert float((ours - theirs).norm() / theirs.norm()) < AGREES
        times.append((own, other))
    own, other = (min(side) for side in zip(*times[untimed:], strict=True))
    return {
        "seconds": own,
        "opponent_seconds": other,
        "ratio": other / own,
        "first_seconds": times[0][0],
        "opponent_first_seconds": times[0][1],
    }


def linear_share(inputs: int, outputs: int, turns: int) -> dict[str, float]:
    rows = BLOCK * 390
    x, packed = torch.randn(rows, inputs), ops.pack_linear(torch.randn(outputs, inputs))
    a, b = torch.randn(2, GEMM, GEMM)
    sides = (lambda: ops.linear(x, packed), 2 * rows * inputs * outputs), (lambda: a @ b, 2 * GEMM**3)
    times = [[seconds(call)[0] for call, _ in sides] for _ in range(3 * turns + 1)][1:]
    ours, machine = (work / min(own) for own, (_, work) in zip(zip(*times, strict=True), sides, strict=True))
    return {"flops_a_second": ours, "machine_flops_a_second": machine, "ratio": ours / machine}


def rows_of(name: str, turns: int) -> dict[str, dict[str, float]]:
    """By what is measured."""
    if name == "small":
        return {name: measure(Sides(SMALL, (16, 16)), BLOCKS + 1, turns)}
    if name == "wide":
        return {name: measure(Sides(WanConfig(depth=2), (30, 52)), BLOCKS + 1, turns)}
    if name == "whole":
        return {name: measure(Sides(WanConfig(), (30, 52), window=2, given=1), 0, turns)}
    if name == "vae":
        return {
            f"{rows} x {columns}, width {width}": measure(Latents((rows, columns)), 3, turns)
            for (rows, columns), width in SIZES.items()
        }
    if name == "linear":
        shapes = (1536, 1536), (1536, 8960), (8960, 1536)
        return {f"{into} -> {out}": linear_share(into, out, turns) for into, out in shapes}
    with tempfile.TemporaryDirectory() as folder:
        return {name: measure(OnePass(Path(folder), (30, 52), 2), 1, turns)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("small", "wide", "whole", "pass", "vae", "linear"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mock.patch.dict(os.environ, ARDIFF_BACKEND="cpu"):
        rows = rows_of(options.name, options.turns)
    text = json.dumps({"threads": 1, "clock": "processor", "rows": rows}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
