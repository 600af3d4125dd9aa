# SPDX-License-Identifier: Apache-2.0
"""Feature vectors of clips in video files, by a network that the user has.

As the official evaluations of video models do it: every frame is resized to a square with Pillow's bicubic
filter in float32, without rounding; pixels are x / 127.5 - 1; a whole clip goes through the network at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ardiff_engine.data.video_folder import find_videos
from ardiff_engine.errors import CheckpointError, DataError, TensorError
from ardiff_engine.media import open_video
from ardiff_engine.named_function import named_function

Extractor = Callable[[Tensor], Tensor]
"""float32 [1, 3, frames, size, size] in [-1, 1] -> [d], or [1, d, ...], of which the mean over the rest is
taken."""

TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")


def find_extractor(name: str) -> Extractor:
    """A TorchScript file, or "module:function". Only open files whose source you trust: TorchScript is a
    program.

    Raises:
        CheckpointError: a file that is no TorchScript. ConfigError: no such function.
    """
    if not name.endswith(TORCHSCRIPT):
        return named_function(name, "--features")
    try:
        network = torch.jit.load(name, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{name}: no TorchScript network ({reason:.200}). Save it with torch.jit.save."
        ) from error
    extractor: Extractor = network.eval()
    return extractor


def windows(folder: Path, frames: int, stride: int, count: int, seed: int) -> list[tuple[Path, int]]:
    """`count` different windows (file, first frame) of the videos below `folder`, in random order: drawn from
    all that begin every `stride` frames.

    Raises:
        DataError: fewer windows than asked for.
    """
    every = [
        (path, first)
        for path in find_videos(folder)
        for first in range(0, open_video(path).frames - frames + 1, stride)
    ]
    if len(every) < count:
        raise DataError(
            f"{folder}: got {len(every)} windows of {frames} frames every {stride}, expected at least "
            f"{count}. Give more or longer videos, a smaller stride, or fewer clips."
        )
    order = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[index] for index in order]


def firsts(folder: Path, frames: int, count: int | None) -> list[tuple[Path, int]]:
    """The first window of each of `count` videos, by name, or of all.

    Raises:
        DataError: fewer videos than asked for, or one that is too short.
    """
    files = find_videos(folder)
    if count is not None and len(files) < count:
        raise DataError(f"{folder}: got {len(files)} videos, expected at least {count}.")
    chosen = files[:count]
    for path in chosen:
        if open_video(path).frames < frames:
            raise DataError(f"{path}: got {open_video(path).frames} frames, expected at least {frames}.")
    return [(path, 0) for path in chosen]


@torch.no_grad()
def features(
    extractor: Extractor, clips: Sequence[tuple[Path, int]], frames: int, size: int, *, progress: bool = True
) -> NDArray[np.float64]:
    """[clips, d].

    Raises:
        TensorError: an extractor that gives no vector, or vectors of other lengths.
    """
    rows: list[Tensor] = []
    for path, first in tqdm(clips, desc="features", unit="clip", disable=not progress, mininterval=1.0):
        pixels = islice(open_video(path).play(first), frames)
        clip = torch.from_numpy(np.stack([_resized(frame, size) for frame in pixels], axis=1))
        found = extractor(clip[None] / 127.5 - 1)
        vector = found if not isinstance(found, Tensor) or found.ndim < 2 else _pooled(found)
        if not isinstance(vector, Tensor) or vector.ndim != 1 or (rows and len(vector) != len(rows[0])):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            wanted = f"[1, {len(rows[0])}]" if rows else "[d] or [1, d, ...]"
            raise TensorError(f"features of {path}: got {got}, expected {wanted}.")
        rows.append(vector.double().cpu())
    return torch.stack(rows).numpy()


def _pooled(found: Tensor) -> Tensor:
    """[1, d, ...] -> [d]"""
    return found.flatten(2).mean(dim=2)[0] if found.ndim > 2 else found[0]


def _resized(frame: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """uint8 [H, W, 3] -> float32 [3, size, size] in 0 .. 255, and a little beyond, as bicubic filters go."""
    channels = [
        Image.fromarray(frame[..., channel].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel, dtype=np.float32) for channel in channels])
