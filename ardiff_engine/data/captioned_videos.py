# SPDX-License-Identifier: Apache-2.0
"""Latents of video files with the captions that lie beside them; no key is held in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ardiff_engine.data.moving_shapes import ACTIONS
from ardiff_engine.data.steered_clips import SteeredClips
from ardiff_engine.data.video_folder import VideoFolder
from ardiff_engine.errors import DataError
from ardiff_engine.models.frame_vae import FrameVAE
from ardiff_engine.parsing import read_bounded

MOST_BYTES = 1 << 16


class CaptionedVideos:
    """The caption of `walk.mp4` is the text of `walk.txt`, or empty without that file."""

    def __init__(self, folder: VideoFolder, vae: FrameVAE) -> None:
        self.folder, self.vae = folder, vae.eval()

    @property
    def captions(self) -> list[str]:
        """Of all files that may be drawn."""
        return [caption(path) for path in self.folder.files]

    def bucket(self, sample: int) -> int:
        return self.folder.bucket(sample)

    @torch.no_grad()
    def clips(self, samples: Sequence[int]) -> SteeredClips:
        images, paths = self.folder.clips_of_files(samples)
        latents = self.vae.latents(images.flatten(0, 1).to(self.vae.mean)).unflatten(0, images.shape[:2])
        actions = torch.zeros(*images.shape[:2], len(ACTIONS) - 1)
        begins = torch.ones(len(paths), dtype=torch.bool)
        return SteeredClips(latents, [caption(path) for path in paths], actions, begins)

    def held_out(self) -> CaptionedVideos:
        return CaptionedVideos(self.folder.held_out(), self.vae)


def caption(video: Path) -> str:
    """DataError: a file that is no text."""
    path = video.with_suffix(".txt")
    if not path.exists():
        return ""
    try:
        return read_bounded(path, MOST_BYTES, DataError).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}; expected a caption in UTF-8.") from error
