# SPDX-License-Identifier: Apache-2.0
"""Whatever may stand for the frames of a video, as uint8 [T, H, W, 3], RGB, in memory order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media.picture import pixels_of
from ardiff_engine.media.pixels import Pixels

# Enlarged beyond this, the smallest models' frames exceed what video formats can hold.
MAX_SCALE = 64
OVERSHOOT = 0.5
"""Of decoders, beyond black and white."""


def as_frames(frames: object) -> Pixels:
    """Frames as a contiguous uint8 array [T, H, W, 3].

    Args:
        frames: numpy array or torch tensor (any device) [T, H, W, 3] or [T, H, W, 1] (grey); uint8 as it is,
            or floating in [0, 1], which becomes `round(255 * x)`; what lies up to 0.5 outside, as decoders
            overshoot, is clamped. Or a sequence of pictures of one size: PIL images of any mode (EXIF's
            orientation counts, transparency is left out), or arrays [H, W, 3].

    Raises:
        MediaError: another type, rank, channel count or dtype; no frames; an empty picture; pictures of
            different sizes; NaN or infinity; floating values of another range, such as 0 to 255.
    """
    try:
        array = _as_array(frames)
    except MediaError:
        raise
    except Exception as error:  # whatever NumPy, PyTorch and Pillow raise for what is not made of numbers
        raise MediaError(f"frames of type {type(frames).__name__} are no pictures: {error}") from error
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
        low, high = float(array.min()), float(array.max())
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            raise MediaError(
                explain(
                    "floating frames have another range than [0, 1]",
                    got=f"values from {low:.4g} to {high:.4g}",
                    expected="0 for black and 1 for white",
                    fix="Divide values of 0 to 255 by 255, or make them uint8; make -1 to 1 (x + 1) / 2.",
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


def _as_array(frames: object) -> NDArray[Any]:
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        # NumPy has no bfloat16.
        return (frames.float() if frames.is_floating_point() else frames).numpy()
    if isinstance(frames, Sequence) and not isinstance(frames, str | bytes):
        pictures = [_picture(picture) for picture in frames]
        sizes = list(dict.fromkeys(picture.shape for picture in pictures))
        if len(sizes) > 1:
            raise MediaError(
                explain(
                    "pictures of one video have different sizes",
                    got=" and ".join(str(list(size)) for size in sizes[:2]),
                    expected="one size [H, W, channels]",
                    fix="Bring them to one size first.",
                )
            )
        return np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8)
    return np.asarray(frames)


def _picture(picture: object) -> NDArray[Any]:
    if isinstance(picture, Image.Image):
        return pixels_of(picture)
    return _as_array(picture) if isinstance(picture, torch.Tensor) else np.asarray(picture)


def enlarge(frames: Pixels, scale: int) -> Pixels:
    """Each pixel becomes a `scale` x `scale` square: small videos stay sharp in players that smooth."""
    check_scale(scale)
    if scale == 1:
        return frames
    return np.ascontiguousarray(frames.repeat(scale, axis=-3).repeat(scale, axis=-2))


def check_scale(scale: int) -> None:
    """Raises MediaError unless `scale` is a whole number from 1 to MAX_SCALE."""
    if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or not 1 <= scale <= MAX_SCALE:
        raise MediaError(
            explain(
                "scale out of range",
                got=scale,
                expected=f"a whole number from 1 to {MAX_SCALE}",
                fix="Use scale=1 to keep the size.",
            )
        )
