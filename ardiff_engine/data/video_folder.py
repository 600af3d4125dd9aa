# SPDX-License-Identifier: Apache-2.0
"""Clips of video files: every video below a folder, resized and cropped to the shape of its bucket."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from ardiff_engine.data.buckets import Bucket, fitting
from ardiff_engine.data.choice import below, shuffled, uniform
from ardiff_engine.data.held_out import most_held_out, say_if_few
from ardiff_engine.errors import MediaError, explain
from ardiff_engine.media import Video, open_video
from ardiff_engine.media.crop import cropped_image
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
    """Random clips of consecutive frames, at `fps` frames per second or each video's own rate; which clip a
    sample id gives depends on (seed, id) and the files. A clip has the shape of its video's bucket.

    Only the window that is drawn is decoded, frame by frame, and nothing of it is kept: memory does not
    depend on the length or the size of the videos. The last `held_out` videos by name are kept apart, at most
    a third of them, or the only one there is serves for both, which the log then says; of those each is drawn
    once before one is drawn again. A video that cannot be read or is too short is reported once by name and
    replaced by the next; MediaError when no video is left.

    step_clips: so many samples in a row, from a multiple of it on, are of one bucket, which is drawn by the
    number of its videos. Held-out samples are of any.
    """

    def __init__(
        self,
        folder: str | Path,
        buckets: Sequence[Bucket],
        held_out: int,
        *,
        fps: float | None = None,
        seed: int = 0,
        step_clips: int = 1,
        part: str = "train",
    ) -> None:
        self.folder, self.buckets, self.seed = Path(folder), tuple(buckets), seed
        self.kept, self.fps, self.step_clips, self.part = held_out, fps, step_clips, part
        every = find_videos(folder)
        kept = min(held_out, most_held_out(len(every)))
        split = len(every) - kept
        self.files = every[:split] if part == "train" else every[split:] or every
        self._videos: dict[Path, Video | None] = {}
        self._reported: set[Path] = set()
        # Now, so that what is wrong with the files is told before the first step. Of one bucket one video
        # that can be read will do; the others are opened when they are drawn.
        if not any(self._sorted if len(self.buckets) > 1 else map(self._video, self.files)):
            raise self._unusable()
        if part == "train":
            say_if_few(folder, held_out, kept, len(every))
            if kept:
                _ = self._held_out

    def clips(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 [B, T, 3, height, width] in [0, 1] of samples of one bucket; no classes."""
        return self.clips_of_files(samples)[0], None

    def clips_of_files(self, samples: Sequence[int]) -> tuple[torch.Tensor, list[Path]]:
        """The same, and the file of each."""
        made = [self._clip(sample) for sample in samples]
        return torch.stack([clip for clip, _ in made]), [path for _, path in made]

    def held_out(self) -> VideoFolder:
        return self._held_out

    def bucket(self, sample: int) -> int:
        """The number of the bucket that its clip is of."""
        return self._place(sample)[0]

    @cached_property
    def _held_out(self) -> VideoFolder:
        return VideoFolder(
            self.folder,
            self.buckets,
            self.kept,
            fps=self.fps,
            seed=self.seed,
            step_clips=self.step_clips,
            part="held_out",
        )

    @cached_property
    def _sorted(self) -> list[list[Path]]:
        """The files of each bucket. One bucket takes them all, unseen: each is opened when it is drawn."""
        if len(self.buckets) == 1:
            return [self.files]
        found: list[list[Path]] = [[] for _ in self.buckets]
        for path in tqdm(self.files, desc="sorting videos", unit="video", mininterval=1.0, leave=False):
            if (video := self._video(path)) is not None:
                found[self._fitting(video)].append(path)
        return found

    def _place(self, sample: int) -> tuple[int, int]:
        """Bucket and place among its files."""
        counts = [len(files) for files in self._sorted]
        if self.part != "train":
            return _in_parts(shuffled(self.seed, Purpose.VIDEO, sample, sum(counts)), counts)
        (share,) = uniform(self.seed, Purpose.BUCKET, sample // self.step_clips, 1)
        bucket, _ = _in_parts(below(share, sum(counts)), counts)
        return bucket, below(uniform(self.seed, Purpose.VIDEO, sample, 1)[0], counts[bucket])

    def _clip(self, sample: int) -> tuple[torch.Tensor, Path]:
        number, first = self._place(sample)
        files, bucket = self._sorted[number], self.buckets[number]
        choice = uniform(self.seed, Purpose.VIDEO, sample, 2)
        for offset in range(len(files)):
            video = self._video(files[(first + offset) % len(files)])
            if video is None:
                continue
            start = below(choice[1], video.frames - bucket.frames + 1)
            frames = islice(video.play(start), bucket.frames)
            try:
                return torch.stack([cropped_image(frame, bucket.size) for frame in frames]), video.path
            except MediaError as error:
                # Other windows of it may be whole. Which clip a sample gives must not depend on those
                # that were drawn before, so the file is tried again.
                self._report(video.path, error)
        raise self._unusable()

    def _unusable(self) -> MediaError:
        shortest = min(bucket.frames for bucket in self.buckets)
        return MediaError(
            explain(
                "video folder",
                got=f"no usable video in {self.folder}" + ("" if self.part == "train" else ", held-out part"),
                expected=f"videos of at least {shortest} frames",
                fix="The log names what is wrong with each file.",
            )
        )

    def _video(self, path: Path) -> Video | None:
        if path not in self._videos:
            try:
                video = open_video(path, self.fps)
                self._fitting(video)
                self._videos[path] = video
            except MediaError as error:
                self._videos[path] = None
                self._report(path, error)
        return self._videos[path]

    def _fitting(self, video: Video) -> int:
        """MediaError: it is too short for any bucket."""
        found = fitting(self.buckets, video.height, video.width, video.frames)
        if found is None:
            raise MediaError(
                explain(
                    f"video {video.path}",
                    got=f"{video.frames} frames",
                    expected=f">= {min(bucket.frames for bucket in self.buckets)}",
                    fix="Remove it.",
                )
            )
        return found

    def _report(self, path: Path, error: MediaError) -> None:
        if path not in self._reported:
            self._reported.add(path)
            logger.warning("skipped, %d of %d so far: %s", len(self._reported), len(self.files), error)


def _in_parts(number: int, counts: Sequence[int]) -> tuple[int, int]:
    """(part, place in it) of an item that is counted through all parts."""
    part = 0
    while number >= counts[part]:
        number -= counts[part]
        part += 1
    return part, number
