# SPDX-License-Identifier: Apache-2.0
"""frame_attention over pages beside cuDNN's and FlashAttention's SDPA on contiguous keys of the same values.

    python benchmarks/gpu/attention.py --variant sm_80      # or sm_90a, on Hopper

Bars against cuDNN: of two chunks of Wan 2.1 1.3B 1.0, of one of its frames 1.25 (both: sm_80 0.5), of 64
streams with one frame of 32 tokens each 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from case import Case, main
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ardiff_engine.ops.frame_attention_cuda import frame_attention_cuda
from ardiff_engine.ops.frame_table import FrameTable

OPPONENTS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True, slots=True)
class Shape:
    """queries and keys of each of `streams`, which share no keys; bars: of the kernels, against cuDNN."""

    streams: int
    queries: int
    keys: int
    heads: int
    dim: int
    page_rows: int
    bars: dict[str, float]


WAN = (12, 128, 112)
SHAPES = (
    Shape(1, 4680, 18720, *WAN, {"sm_80": 0.5, "sm_90a": 1.0}),
    Shape(1, 4680, 32760, *WAN, {"sm_80": 0.5, "sm_90a": 1.0}),
    Shape(1, 1560, 14040, *WAN, {"sm_80": 0.5, "sm_90a": 1.25}),
    Shape(64, 32, 589, 16, 72, 32, {"sm_80": 2.0, "sm_90a": 2.0}),
)


def case(shape: Shape, kernel: str, device: str, dtype: torch.dtype) -> Case:
    streams, queries, keys, heads, dim, rows = (
        shape.streams, shape.queries, shape.keys, shape.heads, shape.dim, shape.page_rows,
    )  # fmt: skip
    listed = -(-keys // rows)
    ids = torch.randperm(streams * listed).reshape(streams, listed)
    valid = [rows] * (listed - 1) + [keys - rows * (listed - 1)]
    table = FrameTable.build([queries] * streams, ids.tolist(), [valid] * streams).to(device)
    q = torch.randn(streams * queries, heads, dim, device=device).to(dtype)
    k, v = (torch.randn(streams * listed, heads, rows, dim, device=device).to(dtype) for _ in "kv")

    def contiguous(pages: torch.Tensor) -> torch.Tensor:
        own = pages[ids.to(device)].transpose(2, 3)  # [streams, listed, rows, heads, dim]
        return own.flatten(1, 2)[:, :keys].transpose(1, 2).contiguous()

    dense = [q.view(streams, queries, heads, dim).transpose(1, 2).contiguous(), contiguous(k), contiguous(v)]

    def sdpa() -> torch.Tensor:
        return scaled_dot_product_attention(*dense).transpose(1, 2).flatten(0, 1)

    def alone(backend: SDPBackend) -> Callable[[], object]:
        def run() -> object:
            with sdpa_kernel([backend]):
                return scaled_dot_product_attention(*dense)

        return run

    def ours() -> torch.Tensor:
        o, _ = frame_attention_cuda(
            q, k, v, *table.offsets[:3], table.pages, *table.offsets[3:], table.bias, dim**-0.5, kernel=kernel
        )
        return o

    return Case(
        "frame_attention",
        f"{streams} x {queries} x {keys}, {heads} x {dim}",
        ours,
        variant=kernel,
        expected=sdpa,
        opponents={name: alone(backend) for name, backend in OPPONENTS.items()},
        bars={"cuDNN": shape.bars[kernel]},
        flops=4 * streams * queries * keys * heads * dim,
    )


def cases(kernel: str) -> Iterator[Case]:
    for shape in SHAPES:
        yield case(shape, kernel, "cuda", torch.bfloat16)


if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], cases, ("sm_80", "sm_90a")))
