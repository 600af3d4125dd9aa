# SPDX-License-Identifier: Apache-2.0
"""Rows of the page pool [layers, P, H, R, D] that become weighted sums of other rows.

    pages[l, row targets[n]] = sum over j of weights[l, j] * pages[l, row sources[n, j]]

Program (target, head, layer). Reads every source and writes every target once: 863 MB for K of 1560 targets
of 5 sources, 12 heads x 128 in 30 layers (bfloat16), 258 us at 3.35 TB/s (H100). Not yet run on a GPU.
Targets with a row outside the pool are left alone and set the device's error bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import BAD_PAGE, on, power_of_2, report
from ardiff_engine.ops.cuda_launch import error_bits

Tensor = torch.Tensor


def run(pages: Tensor, sources: Tensor, targets: Tensor, weights: Tensor | None) -> None:
    """See `ardiff_engine.ops.pool_pages_`."""
    sources, targets = sources.contiguous(), targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    layers, num_pages, heads, rows, dim = pages.shape
    if pages.numel() and targets.numel():
        with on(pages):
            _pool[(targets.shape[0], heads, layers)](
                pages, sources, targets, weights, error_bits(pages.device), num_pages * rows,
                LAYER=pages.stride(0), PAGE=pages.stride(1),
                WEIGHT_LAYER=0 if weights is None or weights.shape[0] == 1 else weights.stride(0),
                TAPS=sources.shape[1], HEADS=heads, ROWS=rows, DIM=dim, COLUMNS=power_of_2(dim),
                enable_fp_fusion=False,
            )  # fmt: skip


@triton.jit
def _pool(
    pages, sources, targets, weights, errors, num_rows,
    LAYER: tl.constexpr, PAGE: tl.constexpr, WEIGHT_LAYER: tl.constexpr, TAPS: tl.constexpr,
    HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    layer = tl.program_id(2).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < DIM
    own = pages + layer * LAYER + head * ROWS * DIM + column
    target = tl.load(targets + place)
    known = (target >= 0) & (target < num_rows)
    present = 0
    for tap in range(TAPS):
        source = tl.load(sources + place * TAPS + tap)
        known = known & (source >= -1) & (source < num_rows)
        present += (source >= 0).to(tl.int32)
    report(errors, known == 0, BAD_PAGE)
    mean = 1.0 / tl.maximum(present, 1).to(tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for tap in range(TAPS):
        source = tl.load(sources + place * TAPS + tap)
        there = inside & known & (source >= 0)
        row = tl.load(own + source // ROWS * PAGE + source % ROWS * DIM, mask=there, other=0.0).to(tl.float32)
        if weights is None:
            total += mean * row
        else:
            at = weights + layer * WEIGHT_LAYER + (tap * HEADS + head) * DIM + column
            total += tl.where(there, tl.load(at, mask=inside, other=0.0) * row, 0.0)
    to = own + target // ROWS * PAGE + target % ROWS * DIM
    tl.store(to, total.to(pages.dtype.element_ty), mask=inside & known)
