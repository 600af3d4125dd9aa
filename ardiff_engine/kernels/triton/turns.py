# SPDX-License-Identifier: Apache-2.0
"""Cosine and sine of an angle in turns (1 turn = 2 pi), and the turns of a rotary angle.

The argument is reduced exactly, to an eighth of a turn, and a polynomial does the rest: within 1.2e-7 of the
true value. The library's cos and sin would reduce arguments of any size, in local memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def cos_sin_turns(turns):
    """(cos, sin) of 2 pi turns, float32, |turns| <= 1."""
    quarter = tl.floor(turns * 4.0 + 0.5)
    angle = (turns - quarter * 0.25) * _TWO_PI
    square = angle * angle
    # Minimax on [-pi/4, pi/4] (Cephes, sinf and cosf).
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    quadrant = quarter.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    first = tl.where(swapped, sine, cosine)
    second = tl.where(swapped, cosine, sine)
    first = tl.where((quadrant == 1) | (quadrant == 2), -first, first)
    second = tl.where(quadrant >= 2, -second, second)
    return first, second


@triton.jit
def rope_cos_sin(positions, frequencies, token, DIM: tl.constexpr, COLUMNS: tl.constexpr, AXES: tl.constexpr):
    """(cos, sin) [COLUMNS / 2] of a token's angles: positions [T, AXES], frequencies [AXES, DIM / 2]."""
    pair = tl.arange(0, COLUMNS // 2)
    angle = tl.zeros([COLUMNS // 2], tl.float64)
    for axis in tl.static_range(AXES):
        frequency = tl.load(frequencies + axis * (DIM // 2) + pair, mask=pair < DIM // 2, other=0.0)
        angle += tl.load(positions + token * AXES + axis).to(tl.float64) * frequency
    return cos_sin_turns(rope_turns(angle))


@triton.jit
def rope_turns(angle):
    """An angle (float64) in turns within [-1/2, 1/2], as float32.

    As in csrc/include/ardiff/rope.h: 1 / (2 pi) in two words keeps the reduction exact to a float ulp for
    every position below 2^31. Launch with enable_fp_fusion=False: a product fused into `turns - whole` would
    count `low` twice.
    """
    inverse = 0.15915494309189535 + tl.zeros_like(angle)
    turns = angle * inverse
    low = tl.fma(angle, inverse, -turns) + angle * -9.8393383375912430e-18
    # Adding and subtracting 1.5 * 2^52 rounds to an integer.
    whole = (turns + 6755399441055744.0) - 6755399441055744.0
    return ((turns - whole) + low).to(tl.float32)


@triton.jit
def rotate_pairs(z, cosine, sine, ROWS: tl.constexpr, PAIRS: tl.constexpr):
    """Rotates the pairs (z[2j], z[2j+1]) of every row of [ROWS, 2 PAIRS]."""
    even, odd = tl.split(tl.reshape(z, [ROWS, PAIRS, 2]))
    turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    return tl.reshape(turned, [ROWS, 2 * PAIRS])
