# SPDX-License-Identifier: Apache-2.0
"""Keys of the counter-based noise: what a draw is for, not when it is drawn.

A draw is named by (seed, stream, frame, purpose, step), its values by the element index. The same name gives
the same numbers on any device, in any batch and in any order, so no noise tensor has to be kept
(`ardiff_engine.ops.philox_normal`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ardiff_engine.arguments import integer
from ardiff_engine.device import upload, usable_device
from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.purposes import Purpose

KEY_COLUMNS = ("seed", "stream", "frame", "purpose", "step")
_RANGES = ((-(1 << 63), 1 << 64), (0, 1 << 32), (0, 1 << 32), (0, 1 << 8), (0, 1 << 24))

Ints = int | Sequence[int] | torch.Tensor


def noise_keys(seeds: Ints, streams: Ints, frames: Ints, purpose: Ints, steps: Ints) -> torch.Tensor:
    """int64 [N, 5] on the CPU, one row per draw; single numbers are repeated to the length of the others.

    Ranges: seed 64 bits (signed or unsigned; the bits count), stream and frame 32, purpose 8, step 24 bits.
    A number outside its range, or lengths that differ, raise TensorError.
    """
    columns = [_as_list(values) for values in (seeds, streams, frames, purpose, steps)]
    lengths = {len(column) for column in columns if len(column) != 1}
    if len(lengths) > 1:
        raise TensorError(
            explain(
                "noise keys: lists of different lengths",
                got=dict(zip(KEY_COLUMNS, map(len, columns), strict=True)),
                expected="one length, or single numbers",
                fix="Give one entry per draw.",
            )
        )
    rows = lengths.pop() if lengths else 1
    for name, column, (low, high) in zip(KEY_COLUMNS, columns, _RANGES, strict=True):
        for value in column:
            if not low <= value < high:
                raise TensorError(
                    explain(
                        f"noise keys: {name} out of range",
                        got=value,
                        expected=f"{low} <= {name} < {high}",
                        fix="Use a smaller number.",
                    )
                )
    columns[0] = [seed - (1 << 64) if seed >= 1 << 63 else seed for seed in columns[0]]
    keys = np.empty((rows, len(KEY_COLUMNS)), np.int64)
    for index, column in enumerate(columns):
        keys[:, index] = column
    return torch.from_numpy(keys)


def initial_noise(
    seed: int,
    stream: int,
    frames: Sequence[int] | torch.Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The noise that these frames start from: float32 [len(frames), *shape], standard normal.

    A frame's noise depends on (seed, stream, frame) alone: not on which other frames are asked for, nor,
    beyond float32 rounding, on the device.
    """
    from ardiff_engine.ops.philox_normal import philox_normal

    sizes = [integer("shape", size) for size in _items("shape", shape)]
    keys = noise_keys(seed, stream, frames, Purpose.INITIAL, 0)
    return philox_normal(upload(keys, usable_device(device)), math.prod(sizes)).reshape(len(keys), *sizes)


def _as_list(values: Ints) -> list[int]:
    if isinstance(values, torch.Tensor):
        if values.is_floating_point() or values.is_complex() or values.ndim > 1:
            raise TensorError(
                explain(
                    "noise keys need integers",
                    got=f"{values.dtype} {tuple(values.shape)}",
                    expected="an integer tensor [N]",
                    fix="Convert it with .long().",
                )
            )
        return [int(value) for value in values.reshape(-1).tolist()]
    if (
        isinstance(values, Iterable)
        and not isinstance(values, str | bytes)
        and getattr(values, "ndim", 1) == 1
    ):
        return [_whole(value) for value in values]
    return [_whole(values)]


def _whole(value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        raise TensorError(f"noise keys are made of whole numbers, got {value!r:.80}") from None


def _items(name: str, values: Sequence[int]) -> Sequence[int]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ConfigError(f"{name} must be a sequence of whole numbers, got {values!r:.80}")
    return values
