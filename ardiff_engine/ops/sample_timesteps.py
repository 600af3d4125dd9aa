# SPDX-License-Identifier: Apache-2.0
"""Training timesteps for every frame of a clip, exact and without tables.

"fopp"     AR-Diffusion's FoPP: a pivot (f*, t*) uniform over frames x timesteps, then uniform over the
non-decreasing
           sequences through it (AR-Diffusion, CVPR 2025, section 3.3)
"uniform"  uniform over all C(T + F - 1, F) non-decreasing sequences
"iid"      every frame independent, uniform over 0..T-1 (diffusion forcing)
"shared"   one uniform timestep for all frames (full-sequence diffusion)

A non-decreasing sequence of m values over K + 1 levels is a walk of m + K positions, each of which either
places the next frame at the current level or raises the level. With a frames and b levels left, the urn walk
places a frame with probability a / (a + b), which makes all walks equally likely. It decides in integers,
`(word * (a + b)) >> 32 < a` with one Philox word per position, so every device draws the same sequence; each
decision is within 2^-32 of exact.
"""

from __future__ import annotations

import torch

from ardiff_engine.arguments import choice, integer
from ardiff_engine.device import usable_device
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.cuda_launch import launch
from ardiff_engine.ops.dispatch import watched
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.philox_normal import reference_philox
from ardiff_engine.purposes import Purpose

RULES = ("fopp", "uniform", "iid", "shared")
_MASK = 0xFFFFFFFF


def sample_timesteps(
    batch: int,
    num_frames: int,
    num_timesteps: int = 1000,
    rule: str = "fopp",
    seed: int = 0,
    *,
    first_sample: int = 0,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """int64 [batch, num_frames] in 0..num_timesteps-1, one row per clip, drawn by `rule` (see the module).

    The same values on every device. Without a kernel for the device they are drawn on the CPU.

    Args:
        batch, num_frames: size of the result.
        num_timesteps: of the noise schedule.
        rule: "fopp", "uniform", "iid" or "shared".
        seed: 64 bits, signed or not.
        first_sample: row i is a pure function of (seed, first_sample + i): give every rank and step its
            own range.
        device: of the result.

    Raises:
        ConfigError: an unknown rule or device, or a size, seed or sample number out of range.
    """
    choice("rule", rule, RULES)
    batch, num_frames = integer("batch", batch), integer("num_frames", num_frames)
    num_timesteps, seed = integer("num_timesteps", num_timesteps), integer("seed", seed)
    first_sample = integer("first_sample", first_sample)
    limits = (
        ("batch", batch, 0, 2**31),
        ("num_frames", num_frames, 1, 2**30),
        ("num_timesteps", num_timesteps, 1, 2**30),
        ("seed", seed, -(2**63), 2**64 - 1),
        ("first_sample", first_sample, 0, 2**63 - batch - 1),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise ConfigError(
                explain(name, got=value, expected=f"{low}..{high}", fix="Choose a value in this range.")
            )
    signed = seed - 2**64 if seed >= 2**63 else seed
    run = torch.ops.ardiff.sample_timesteps if watched() else _run
    on = torch.device(device) if torch.compiler.is_compiling() else usable_device(device)
    timesteps: torch.Tensor = run(batch, num_frames, num_timesteps, rule, signed, first_sample, on)
    return timesteps


def reference_sample_timesteps(
    batch: int, num_frames: int, num_timesteps: int, rule: str, seed: int, first_sample: int
) -> torch.Tensor:
    """The specification in PyTorch, vectorised over the batch; on the CPU."""
    with torch.device("cpu"):
        return _reference(batch, num_frames, num_timesteps, rule, seed, first_sample)


def _reference(
    batch: int, num_frames: int, num_timesteps: int, rule: str, seed: int, first_sample: int
) -> torch.Tensor:
    sample = first_sample + torch.arange(batch, dtype=torch.int64)
    if rule == "shared":
        words = _words(sample, seed, 1)
        return ((words * num_timesteps) >> 32).expand(batch, num_frames).contiguous()
    if rule == "iid":
        return (_words(sample, seed, num_frames) * num_timesteps) >> 32
    words = _words(sample, seed, 2 + num_frames + num_timesteps)
    if rule == "uniform":
        frames, levels = torch.full((batch,), num_frames), torch.full((batch,), num_timesteps - 1)
        return _urn_walk(words[:, 2:], num_frames, num_timesteps, frames, levels, None)
    frame, level = (words[:, 0] * num_frames) >> 32, (words[:, 1] * num_timesteps) >> 32
    return _urn_walk(words[:, 2:], num_frames, num_timesteps, frame, level, (frame, level))


def _urn_walk(
    words: torch.Tensor,
    num_frames: int,
    num_timesteps: int,
    frames_left: torch.Tensor,
    levels_left: torch.Tensor,
    pivot: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Walks to the pivot, then from it to the end; without a pivot, one walk over all frames."""
    batch = words.shape[0]
    trash = num_frames
    values = torch.zeros(batch, num_frames + 1, dtype=torch.int64)
    frame, level = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64)
    if pivot is not None:
        values.scatter_(1, pivot[0][:, None], pivot[1][:, None])
    before_pivot = torch.full((batch,), pivot is not None)
    for position in range(num_frames + num_timesteps - (1 if pivot is None else 2)):
        if pivot is not None:
            turn = before_pivot & (frames_left + levels_left == 0)
            before_pivot = before_pivot & ~turn
            frame = torch.where(turn, pivot[0] + 1, frame)
            level = torch.where(turn, pivot[1], level)
            frames_left = torch.where(turn, num_frames - 1 - pivot[0], frames_left)
            levels_left = torch.where(turn, num_timesteps - 1 - pivot[1], levels_left)
        place = ((words[:, position] * (frames_left + levels_left)) >> 32) < frames_left
        values.scatter_(1, torch.where(place, frame, trash)[:, None], level[:, None])
        step = place.long()
        frame, frames_left = frame + step, frames_left - step
        level, levels_left = level + 1 - step, levels_left - 1 + step
    return values[:, :num_frames].contiguous()


def _words(sample: torch.Tensor, seed: int, count: int) -> torch.Tensor:
    """Philox words 0..count-1 of every sample: int64 [batch, count]."""
    sample = sample[:, None]
    counter = (
        torch.arange(-(-count // 4), dtype=torch.int64)[None],
        (sample >> 32) & _MASK,
        sample & _MASK,
        torch.tensor(Purpose.TIMESTEPS << 24),
    )
    key = (torch.tensor(seed & _MASK), torch.tensor((seed >> 32) & _MASK))
    return reference_philox(counter, key).flatten(1)[:, :count]


def _run(
    batch: int,
    num_frames: int,
    num_timesteps: int,
    rule: str,
    seed: int,
    first_sample: int,
    device: torch.device | None = None,
) -> torch.Tensor:
    device = device or torch.device("cpu")
    backend = choose("sample_timesteps", torch.empty(0, dtype=torch.float32, device=device)).name
    if backend == "reference":
        drawn = reference_sample_timesteps(batch, num_frames, num_timesteps, rule, seed, first_sample)
        return drawn.to(device)
    if backend == "triton":
        run = triton_kernel("sample_timesteps")
        timesteps: torch.Tensor = run(batch, num_frames, num_timesteps, rule, seed, first_sample, device)
        return timesteps
    out = torch.empty(batch, num_frames, dtype=torch.int64, device=device)
    arguments = (out.data_ptr(), batch, num_frames, num_timesteps, RULES.index(rule), seed, first_sample)
    if backend == "cpu":
        kernels().sample_timesteps(*arguments)
    else:
        launch("sample_timesteps", device, *arguments)
    return out


@torch.library.custom_op("ardiff::sample_timesteps", mutates_args=())
def _sample_timesteps_op(
    batch: int,
    num_frames: int,
    num_timesteps: int,
    rule: str,
    seed: int,
    first_sample: int,
    device: torch.device | None = None,
) -> torch.Tensor:
    return _run(batch, num_frames, num_timesteps, rule, seed, first_sample, device)


@_sample_timesteps_op.register_fake
def _sample_timesteps_fake(
    batch: int,
    num_frames: int,
    num_timesteps: int,
    rule: str,
    seed: int,
    first_sample: int,
    device: torch.device | None = None,
) -> torch.Tensor:
    return torch.empty(batch, num_frames, dtype=torch.int64, device=device)
