# SPDX-License-Identifier: Apache-2.0
"""The one form of pixels in this package: uint8 [T, H, W, 3], RGB, in memory order."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.errors import MediaError, explain

Pixels: TypeAlias = NDArray[np.uint8]


def as_frames(frames: object) -> Pixels:
    """Frames as a contiguous uint8 array [T, H, W, 3].

    Args:
        frames: numpy array or torch tensor (any device) [T, H, W, 3] or [T, H, W, 1] (grey); uint8 as it is,
            or
            floating in [0, 1], which becomes `round(255 * x)` after clamping.

    Raises:
        MediaError: another type, rank, channel count or dtype; no frames; an empty picture; NaN or infinity.
    """
    array = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise MediaError(
            explain(
                "frames have a shape that is not a video",
                got=list(array.shape),
                expected="[T, H, W, 3] or [T, H, W, 1]",
                fix="Put channels last and drop the batch axis: out.frames[0], or x.permute(0, 2, 3, 1).",
            )
        )
    if 0 in array.shape:
        raise MediaError(
            explain(
                "frames are empty",
                got=list(array.shape),
                expected="at least one frame with at least one pixel",
                fix="Check the number of frames asked for.",
            )
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise MediaError(
                explain(
                    "frames hold values that are not numbers",
                    got="NaN or infinity",
                    expected="finite values in [0, 1]",
                    fix="Look for the step that produced them; a picture would only hide it.",
                )
            )
        array = np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise MediaError(
            explain(
                "frames have a dtype without a defined range",
                got=array.dtype,
                expected="uint8, or floating in [0, 1]",
                fix="Convert them first: (x / x.max()), or x.astype('uint8').",
            )
        )
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return np.ascontiguousarray(array)


def enlarge(frames: Pixels, scale: int) -> Pixels:
    """Each pixel becomes a `scale` x `scale` square: small videos stay sharp in players that smooth."""
    check_scale(scale)
    if scale == 1:
        return frames
    return np.ascontiguousarray(frames.repeat(scale, axis=-3).repeat(scale, axis=-2))


def check_scale(scale: int) -> None:
    """Raises MediaError for a scale below 1."""
    if scale < 1:
        raise MediaError(
            explain(
                "scale out of range",
                got=scale,
                expected="an integer >= 1",
                fix="Use scale=1 to keep the size.",
            )
        )
