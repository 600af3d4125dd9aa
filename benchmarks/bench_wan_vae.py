# SPDX-License-Identifier: Apache-2.0
"""Streaming decode of Wan 2.1's autoencoder, one latent after the other, against the official algorithm in
plain PyTorch, with random weights of the published widths. Convention: benchmarks/README.md.

`python benchmarks/bench_wan_vae.py` prints the peak memory of both, each in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch
from plain_wan_vae import PlainDecoder
from pytest_benchmark.fixture import BenchmarkFixture
from versus import THREADS, Row, versus

from ardiff_engine.codec import WanVAE
from ardiff_engine.codec.video import VideoDecoder

SIZES = {(4, 8): 96, (8, 13): 96, (30, 52): 32}
"""Rows and columns of a latent, and the width."""
SIDES = ("ours", "official")


def decoders(width: int) -> tuple[VideoDecoder, PlainDecoder]:
    torch.manual_seed(0)
    vae = WanVAE(width).eval().requires_grad_(False)
    return vae.decoder(), PlainDecoder(vae.state_dict(), vae.mean, vae.std)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_decode(benchmark: BenchmarkFixture, size: tuple[int, int], threads: int) -> None:
    ours, official = decoders(SIZES[size])
    z = torch.randn(4, 16, *size)
    started = ours.push(z[:3]), official.push(z[:3])
    torch.testing.assert_close(*started, rtol=0, atol=1e-4)
    row = Row(
        op="wan vae decode",
        shape=f"width {SIZES[size]}, a latent of {size[0]} x {size[1]}",
        threads=threads,
        opponent="official, PyTorch",
        bar=1.0,
    )
    versus(benchmark, row, lambda: ours.push(z[3:]), lambda: official.push(z[3:]))


def peak(side: str, size: tuple[int, int]) -> None:
    """Prints by how many MiB four latents raise the peak of this process."""
    decoder = dict(zip(SIDES, decoders(SIZES[size]), strict=True))[side]
    z = torch.randn(4, 16, *size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for latent in z.split(1):
        decoder.push(latent)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        peak(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3])))
    else:
        for size in SIZES:
            rows = [
                subprocess.run(
                    [sys.executable, __file__, side, *map(str, size)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.strip()
                for side in SIDES
            ]
            print(f"width {SIZES[size]}, {size[0]} x {size[1]}: {rows[0]} MiB, official {rows[1]} MiB")
