# SPDX-License-Identifier: Apache-2.0
"""Training timesteps by an integer urn walk, drawn on the device: the same integers as everywhere else.

int64 [batch, frames]; see `ardiff_engine.ops.sample_timesteps` for the rules. One lane walks one sample: with
a frames and b levels left, a position places the next frame where (word * (a + b)) >> 32 < a, else raises the
level; one Philox call gives the words of four positions. frames + timesteps positions in sequence, about 40
integer operations each: some 30 us for 16 x 1000, whatever the batch. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.launch import ceil_div, on
from ardiff_engine.kernels.triton.philox_normal import philox

LANES = 32
_PURPOSE = tl.constexpr(5 << 24)


def run(
    batch: int,
    num_frames: int,
    num_timesteps: int,
    rule: str,
    seed: int,
    first_sample: int,
    device: str | torch.device = "cuda",
) -> torch.Tensor:
    """int64 [batch, num_frames] on `device`; seed as a signed 64-bit integer."""
    out = torch.empty(batch, num_frames, dtype=torch.int64, device=device)
    if batch:
        kernel = _walk if rule in ("fopp", "uniform") else _independent
        with on(out):
            kernel[(ceil_div(batch, LANES),)](
                out, seed, first_sample, batch, num_frames, num_timesteps,
                FIRST_RULE=rule in ("fopp", "iid"), LANES=LANES, num_warps=1,
            )  # fmt: skip
    return out


@triton.jit
def _words(seed, first_sample, sample, block):
    """Words 4 block .. 4 block + 3 of every sample, as int64."""
    seed = seed.to(tl.int64)  # Triton's interpreter passes small numbers as int32
    number = first_sample.to(tl.int64) + sample
    low = number.to(tl.uint32)
    counter = low * 0 + block.to(tl.uint32)
    purpose = low * 0 + _PURPOSE
    high = (number >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(counter, high, low, purpose, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))
    return w0.to(tl.int64), w1.to(tl.int64), w2.to(tl.int64), w3.to(tl.int64)


# Other seeds and samples must not compile the kernel anew, as numbers that are 1 or divisible by 16 would.
@triton.jit(do_not_specialize=["seed", "first_sample"])
def _independent(
    out, seed: tl.int64, first_sample: tl.int64, batch, frames, timesteps, FIRST_RULE: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """ "iid" (FIRST_RULE): word f for frame f; "shared": word 0 for all."""
    sample = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = sample < batch
    row = out + sample.to(tl.int64) * frames
    shared, _, _, _ = _words(seed, first_sample, sample, sample * 0)
    for block in range(0, tl.cdiv(frames, 4)):
        w0, w1, w2, w3 = _words(seed, first_sample, sample, sample * 0 + block)
        for j in tl.static_range(4):
            if FIRST_RULE:
                word = w0 if j == 0 else w1 if j == 1 else w2 if j == 2 else w3
            else:
                word = shared
            frame = block * 4 + j
            tl.store(row + frame, (word * timesteps) >> 32, mask=inside & (frame < frames))


@triton.jit(do_not_specialize=["seed", "first_sample"])
def _walk(
    out, seed: tl.int64, first_sample: tl.int64, batch, frames, timesteps, FIRST_RULE: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """ "fopp" (FIRST_RULE): to the pivot of words 0 and 1, then from it; "uniform": one walk over all."""
    sample = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = sample < batch
    row = out + sample.to(tl.int64) * frames
    w0, w1, _, _ = _words(seed, first_sample, sample, sample * 0)
    pivot_frame = (w0 * frames) >> 32
    pivot_level = (w1 * timesteps) >> 32
    if FIRST_RULE:
        frames_left = pivot_frame
        levels_left = pivot_level
        positions = frames + timesteps - 2
        tl.store(row + pivot_frame, pivot_level, mask=inside)
    else:
        frames_left = w0 * 0 + frames
        levels_left = w0 * 0 + timesteps - 1
        positions = frames + timesteps - 1
    frame = w0 * 0
    level = w0 * 0
    before_pivot = inside & FIRST_RULE
    for block in range(0, tl.cdiv(positions + 2, 4)):
        w0, w1, w2, w3 = _words(seed, first_sample, sample, sample * 0 + block)
        for j in tl.static_range(4):
            word = w0 if j == 0 else w1 if j == 1 else w2 if j == 2 else w3
            position = block * 4 + j - 2
            walks = (position >= 0) & (position < positions)
            if FIRST_RULE:
                turn = walks & before_pivot & (frames_left + levels_left == 0)
                before_pivot = before_pivot & (turn == 0)
                frame = tl.where(turn, pivot_frame + 1, frame)
                level = tl.where(turn, pivot_level, level)
                frames_left = tl.where(turn, frames - 1 - pivot_frame, frames_left)
                levels_left = tl.where(turn, timesteps - 1 - pivot_level, levels_left)
            places = walks & (((word * (frames_left + levels_left)) >> 32) < frames_left)
            raises = walks & (places == 0)
            tl.store(row + frame, level, mask=inside & places)
            frame += places.to(tl.int64)
            frames_left -= places.to(tl.int64)
            level += raises.to(tl.int64)
            levels_left -= raises.to(tl.int64)
