# SPDX-License-Identifier: Apache-2.0
"""Housekeeping of the page pool [layers, P, H, R, D], dense pages: copies, and moves of K to other positions.

    copy_pages     k[:, dst] = k[:, src], v[:, dst] = v[:, src], bit for bit
    rotate_pages   (k[2j], k[2j+1]) rotated by delta * frequencies[j] in every row of the page

Program (listed page, block of it, layer). Reads and writes every listed byte once: 578 MB for a frame of
14 pages x 12 heads x 112 rows x 128 in 30 layers (bfloat16, copy; rotation half of it), 173 us at 3.35 TB/s
(H100). Not yet run on a GPU. Pages outside the pool are skipped and set the device's error bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import BAD_PAGE, ceil_div, on, power_of_2, report
from ardiff_engine.kernels.triton.turns import cos_sin_turns, rope_turns, rotate_pairs
from ardiff_engine.ops.cuda_launch import error_bits

Tensor = torch.Tensor
_BLOCK = 2048


def copy_pages(k_pages: Tensor, v_pages: Tensor, src: Tensor, dst: Tensor) -> None:
    """See `ardiff_engine.ops.copy_pages_`."""
    src, dst = src.contiguous(), dst.contiguous()
    layers, num_pages, *page = k_pages.shape
    elements = page[0] * page[1] * page[2]
    if k_pages.numel() and src.numel():
        grid = (src.shape[0], ceil_div(elements, _BLOCK), layers)  # only the first may exceed 65535
        with on(k_pages):
            _copy[grid](
                k_pages, v_pages, src, dst, error_bits(k_pages.device), num_pages, elements,
                LAYER=k_pages.stride(0), PAGE=k_pages.stride(1), BLOCK=_BLOCK,
            )  # fmt: skip


def rotate_pages(
    k_pages: Tensor, pages: Tensor, deltas: Tensor, frequencies: Tensor, source: Tensor | None
) -> None:
    """See `ardiff_engine.ops.rotate_pages_`."""
    if source is not None and not source[0:1, 0:1].is_contiguous():
        source = source.contiguous()
    pages, deltas, frequencies = pages.contiguous(), deltas.contiguous(), frequencies.double().contiguous()
    layers, num_pages, heads, rows, dim = k_pages.shape
    columns = max(2, power_of_2(dim))
    rows_at_once = max(1, _BLOCK // columns)
    if k_pages.numel() and pages.numel():
        grid = (pages.shape[0], ceil_div(heads * rows, rows_at_once), layers)
        with on(k_pages):
            _rotate[grid](
                k_pages, source, pages, deltas, frequencies, error_bits(k_pages.device), num_pages,
                heads * rows, LAYER=k_pages.stride(0), PAGE=k_pages.stride(1),
                SOURCE_LAYER=0 if source is None else source.stride(0),
                SOURCE_PAGE=0 if source is None else source.stride(1),
                DIM=dim, ROWS=rows_at_once, COLUMNS=columns, enable_fp_fusion=False,
            )  # fmt: skip


@triton.jit
def _copy(
    k, v, src, dst, errors, num_pages, elements,
    LAYER: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.program_id(2).to(tl.int64) * LAYER
    source = tl.load(src + tl.program_id(0))
    to = tl.load(dst + tl.program_id(0))
    known = (source >= 0) & (source < num_pages) & (to >= 0) & (to < num_pages)
    report(errors, known == 0, BAD_PAGE)
    inside = (at < elements) & known
    tl.store(k + layer + to * PAGE + at, tl.load(k + layer + source * PAGE + at, mask=inside), mask=inside)
    tl.store(v + layer + to * PAGE + at, tl.load(v + layer + source * PAGE + at, mask=inside), mask=inside)


@triton.jit
def _rotate(
    k, source, pages, deltas, frequencies, errors, num_pages, rows,
    LAYER: tl.constexpr, PAGE: tl.constexpr, SOURCE_LAYER: tl.constexpr, SOURCE_PAGE: tl.constexpr,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(2).to(tl.int64)
    page = tl.load(pages + place)
    known = (page >= 0) & (page < num_pages)
    report(errors, known == 0, BAD_PAGE)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    at = row[:, None] * DIM + column[None, :]
    inside = (row < rows)[:, None] & (column < DIM)[None, :] & known
    pair = tl.arange(0, COLUMNS // 2)
    frequency = tl.load(frequencies + pair, mask=pair < DIM // 2, other=0.0)
    cosine, sine = cos_sin_turns(rope_turns(tl.load(deltas + place).to(tl.float64) * frequency))
    to = k + layer * LAYER + page * PAGE + at
    if source is None:
        z = tl.load(to, mask=inside, other=0.0)
    else:
        z = tl.load(source + layer * SOURCE_LAYER + place * SOURCE_PAGE + at, mask=inside, other=0.0)
    z = rotate_pairs(z.to(tl.float32), cosine[None, :], sine[None, :], ROWS, COLUMNS // 2)
    tl.store(to, z.to(k.dtype.element_ty), mask=inside)
