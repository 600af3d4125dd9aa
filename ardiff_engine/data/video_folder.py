# SPDX-License-Identifier: Apache-2.0
"""Clips of video files: every video below a folder, decoded with PyAV, resized and cropped to squares."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.data.clips import to_images
from ardiff_engine.errors import MediaError, explain

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
PURPOSE_VIDEO = 20
CACHED_VIDEOS = 8

logger = logging.getLogger(__name__)


def find_videos(folder: str | Path) -> list[Path]:
    """All video files at any depth below `folder`, sorted. Raises MediaError when there are none."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise MediaError(
            explain(
                "video folder",
                got=f"no video in {folder}",
                expected=f"files with {', '.join(VIDEO_SUFFIXES)}",
                fix="Check the path.",
            )
        )
    return found


def resize_and_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """float [T, 3, H, W] -> [T, 3, size, size]: shorter side to `size` (bicubic, antialiased), centre crop,
    clamped to [0, 1]."""
    height, width = images.shape[-2:]
    factor = size / min(height, width)
    shape = (max(size, round(height * factor)), max(size, round(width * factor)))
    if shape != (height, width):
        images = torch.nn.functional.interpolate(
            images, size=shape, mode="bicubic", antialias=True, align_corners=False
        )
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)


class VideoFolder:
    """Random clips of `num_frames` consecutive frames; which clip a sample id gives depends on (seed, id) and
    the files.

    The last `held_out` videos by name are kept apart, or the only one there is serves for both. A video that
    cannot be read or is too short is reported once by name and replaced by the next; MediaError when no video
    is left.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int,
        image_size: int,
        held_out: int,
        *,
        seed: int = 0,
        part: str = "train",
    ) -> None:
        self.folder, self.num_frames, self.image_size, self.seed = Path(folder), num_frames, image_size, seed
        self.kept, self.part = held_out, part
        every = find_videos(folder)
        split = max(1, len(every) - held_out)
        self.files = every[:split] if part == "train" else every[split:] or every
        self.broken: set[Path] = set()
        self._recent: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [B, T, 3, size, size] in [0, 1]; no classes."""
        return torch.stack([self._clip(sample) for sample in samples]), None

    def held_out(self) -> VideoFolder:
        return VideoFolder(
            self.folder, self.num_frames, self.image_size, self.kept, seed=self.seed, part="held_out"
        )

    def _clip(self, sample: int) -> torch.Tensor:
        choice = uniform(self.seed, PURPOSE_VIDEO, sample, 2)
        first = below(choice[0], len(self.files))
        for offset in range(len(self.files)):
            path = self.files[(first + offset) % len(self.files)]
            video = self._video(path)
            if video is not None:
                start = below(choice[1], len(video) - self.num_frames + 1)
                return resize_and_crop(to_images(video[start : start + self.num_frames]), self.image_size)
        raise MediaError(
            explain(
                "video folder",
                got=f"no usable video in {self.folder}",
                expected=f"videos of at least {self.num_frames} frames",
                fix="The log names what is wrong with each file.",
            )
        )

    def _video(self, path: Path) -> NDArray[np.uint8] | None:
        from ardiff_engine.media import read_video

        if path in self.broken:
            return None
        if path in self._recent:
            self._recent.move_to_end(path)
            return self._recent[path]
        try:
            video = np.asarray(read_video(path))
            if len(video) < self.num_frames:
                raise MediaError(
                    explain(
                        f"video {path}",
                        got=f"{len(video)} frames",
                        expected=f">= {self.num_frames}",
                        fix="Remove it.",
                    )
                )
        except MediaError as error:
            self.broken.add(path)
            logger.warning("skipped: %s", error)
            return None
        self._recent[path] = video
        if len(self._recent) > CACHED_VIDEOS:
            self._recent.popitem(last=False)
        return video
