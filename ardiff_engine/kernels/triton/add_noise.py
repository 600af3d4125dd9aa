# SPDX-License-Identifier: Apache-2.0
"""The forward process with the training target from the same pass; noise given, or made in registers.

    noisy = signal x0 + sigma eps;  target: "eps" eps, "v" signal eps - sigma x0, "flow" eps - x0

x0 [N, elements] in float32, bfloat16 or float16; signal, sigma float32 [N]. A program owns 1024 elements
of a row. Reads x0 (and noise), writes noisy (and target) once: with keys and a target 12 bytes per float32
element, 3.6 ns per 1000 elements at 3.35 TB/s (H100); launch-bound below a million. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import ceil_div, on
from ardiff_engine.kernels.triton.philox_normal import BLOCK, normals, row_block

Tensor = torch.Tensor


def run(
    x0: Tensor, signal: Tensor, sigma: Tensor, noise: Tensor | None, keys: Tensor | None, target: str
) -> tuple[Tensor, Tensor]:
    """(noisy, target); the target is empty for "". See `ardiff_engine.ops.add_noise`."""
    x0 = x0.contiguous()
    signal, sigma = signal.to(torch.float32).contiguous(), sigma.to(torch.float32).contiguous()
    noise = None if noise is None else noise.contiguous()
    noisy, wanted = torch.empty_like(x0), x0.new_empty(x0.shape if target else (0,))
    rows, elements = x0.shape[0], x0[0].numel() if x0.shape[0] else 0
    if rows and elements:
        with on(x0):
            _noise[(ceil_div(elements, BLOCK) * rows,)](
                x0, signal, sigma, noise, keys, noisy, wanted, elements, TARGET=target, BLOCK=BLOCK
            )
    return noisy, wanted


@triton.jit
def _noise(
    x0, signal, sigma, noise, keys, noisy, wanted, elements, TARGET: tl.constexpr, BLOCK: tl.constexpr
):
    row, first = row_block(elements, BLOCK)
    column = first + tl.arange(0, BLOCK)
    inside = column < elements
    at = row * elements + column
    clean = tl.load(x0 + at, mask=inside, other=0.0).to(tl.float32)
    if noise is None:
        eps = normals(keys, row, first, BLOCK)
    else:
        eps = tl.load(noise + at, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(signal + row)
    s = tl.load(sigma + row)
    tl.store(noisy + at, (a * clean + s * eps).to(noisy.dtype.element_ty), mask=inside)
    if TARGET == "eps":
        tl.store(wanted + at, eps.to(wanted.dtype.element_ty), mask=inside)
    elif TARGET == "v":
        tl.store(wanted + at, (a * eps - s * clean).to(wanted.dtype.element_ty), mask=inside)
    elif TARGET == "flow":
        tl.store(wanted + at, (eps - clean).to(wanted.dtype.element_ty), mask=inside)
