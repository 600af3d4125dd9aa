# SPDX-License-Identifier: Apache-2.0
"""Counter-based normal noise: Philox4x32-10 and Box-Muller, keyed as in csrc/include/ardiff/philox_normal.h.

    words = philox((element / 4, frame, stream, purpose << 24 | step), (seed low, seed high))
    u = fma(float(word), 2^-32, 2^-33);  r = sqrt(-2 ln u1);  z = r cos(2 pi u2), r sin(2 pi u2)

keys int64 [N, 5] -> float32 [N, elements]. A program makes 1024 elements of a row, four per counter; words
and u are bit-exact, z to float32 rounding. 4 bytes written per element: 1.2 MB for three frames of 1560 x 64
latents, 0.4 us at 3.35 TB/s (H100). Not yet run on a GPU.

`normals` and `noise_key` are for other kernels that want noise in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import ceil_div, on
from ardiff_engine.kernels.triton.turns import cos_sin_turns

BLOCK = 1024


def run(keys: torch.Tensor, elements: int) -> torch.Tensor:
    """See `ardiff_engine.ops.philox_normal`."""
    out = torch.empty(keys.shape[0], elements, dtype=torch.float32, device=keys.device)
    if out.numel():
        with on(keys):
            _fill[(ceil_div(elements, BLOCK) * keys.shape[0],)](keys, out, elements, BLOCK=BLOCK)
    return out


@triton.jit
def _fill(keys, out, elements, BLOCK: tl.constexpr):
    row, first = row_block(elements, BLOCK)
    at = first + tl.arange(0, BLOCK)
    tl.store(out + row * elements + at, normals(keys, row, first, BLOCK), mask=at < elements)


@triton.jit
def row_block(elements, BLOCK: tl.constexpr):
    """(row, first element) of a program in a one-dimensional grid over rows of `elements` elements."""
    blocks = tl.cdiv(elements, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64) * BLOCK


@triton.jit
def normals(keys, row, first, BLOCK: tl.constexpr):
    """Elements first .. first + BLOCK of the noise of a key row; first is a multiple of 4."""
    seed_low, seed_high, frame, stream, purpose_step = noise_key(keys, row)
    counter = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = philox(counter, frame, stream, purpose_step, seed_low, seed_high)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [BLOCK])


@triton.jit
def noise_key(keys, row):
    """(seed low, seed high, frame, stream, purpose << 24 | step) of a row of the key tensor, uint32."""
    seed = tl.load(keys + row * 5)
    stream = tl.load(keys + row * 5 + 1)
    frame = tl.load(keys + row * 5 + 2)
    purpose = tl.load(keys + row * 5 + 3).to(tl.uint32) << 24
    step = tl.load(keys + row * 5 + 4).to(tl.uint32) & 0xFFFFFF
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return low, high, frame.to(tl.uint32), stream.to(tl.uint32), purpose | step


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of counters c0 and scalars, all uint32."""
    zero = c0 * 0
    return tl.random.philox_impl(c0, zero + c1, zero + c2, zero + c3, k0, k1)


@triton.jit
def _box_muller(a, b):
    u1 = _uniform(a)
    u2 = _uniform(b)
    radius = tl.sqrt_rn(-2.0 * tl.log(u1))
    cosine, sine = cos_sin_turns(u2)
    return radius * cosine, radius * sine


@triton.jit
def _uniform(word):
    """In (0, 1]: the offset keeps the logarithm finite."""
    return word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
