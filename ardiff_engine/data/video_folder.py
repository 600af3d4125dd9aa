# SPDX-License-Identifier: Apache-2.0
"""Clips of video files: every video below a folder, resized and cropped to squares."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from ardiff_engine.data.choice import below, uniform
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media import Video, open_video
from ardiff_engine.media.square import square_image
from ardiff_engine.purposes import Purpose

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")

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


class VideoFolder:
    """Random clips of `num_frames` consecutive frames, at `fps` frames per second or each video's own rate;
    which clip a sample id gives depends on (seed, id) and the files.

    Only the window that is drawn is decoded, frame by frame, and nothing of it is kept: memory does not
    depend on the length or the size of the videos. The last `held_out` videos by name are kept apart, or the
    only one there is serves for both. A video that cannot be read or is too short is reported once by name
    and replaced by the next; MediaError when no video is left.
    """

    def __init__(
        self,
        folder: str | Path,
        num_frames: int,
        image_size: int,
        held_out: int,
        *,
        fps: float | None = None,
        seed: int = 0,
        part: str = "train",
    ) -> None:
        self.folder, self.num_frames, self.image_size, self.seed = Path(folder), num_frames, image_size, seed
        self.kept, self.fps, self.part = held_out, fps, part
        every = find_videos(folder)
        split = max(1, len(every) - held_out)
        self.files = every[:split] if part == "train" else every[split:] or every
        self._videos: dict[Path, Video | None] = {}
        self._reported: set[Path] = set()

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [B, T, 3, size, size] in [0, 1]; no classes."""
        return torch.stack([self._clip(sample) for sample in samples]), None

    def held_out(self) -> VideoFolder:
        return VideoFolder(
            self.folder,
            self.num_frames,
            self.image_size,
            self.kept,
            fps=self.fps,
            seed=self.seed,
            part="held_out",
        )

    def _clip(self, sample: int) -> torch.Tensor:
        choice = uniform(self.seed, Purpose.VIDEO, sample, 2)
        first = below(choice[0], len(self.files))
        for offset in range(len(self.files)):
            video = self._video(self.files[(first + offset) % len(self.files)])
            if video is None:
                continue
            start = below(choice[1], video.frames - self.num_frames + 1)
            frames = islice(video.play(start), self.num_frames)
            try:
                return torch.stack([square_image(frame, self.image_size) for frame in frames])
            except MediaError as error:
                # Other windows of it may be whole. Which clip a sample gives must not depend on those
                # that were drawn before, so the file is tried again.
                self._report(video.path, error)
        raise MediaError(
            explain(
                "video folder",
                got=f"no usable video in {self.folder}",
                expected=f"videos of at least {self.num_frames} frames",
                fix="The log names what is wrong with each file.",
            )
        )

    def _video(self, path: Path) -> Video | None:
        if path not in self._videos:
            try:
                self._videos[path] = self._long_enough(open_video(path, self.fps))
            except MediaError as error:
                self._videos[path] = None
                self._report(path, error)
        return self._videos[path]

    def _long_enough(self, video: Video) -> Video:
        if video.frames < self.num_frames:
            raise MediaError(
                explain(
                    f"video {video.path}",
                    got=f"{video.frames} frames",
                    expected=f">= {self.num_frames}",
                    fix="Remove it.",
                )
            )
        return video

    def _report(self, path: Path, error: MediaError) -> None:
        if path not in self._reported:
            self._reported.add(path)
            logger.warning("skipped: %s", error)
