# SPDX-License-Identifier: Apache-2.0
"""The latents of one stream's frames."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import torch


class StreamLatents(MutableMapping[int, torch.Tensor]):
    """Frame -> latent [tokens, channels].

    The frames that one pass has moved lie behind each other in what it returned, and are wanted in that order
    by the next pass: they are kept as one tensor until somebody asks for a single frame to be another.
    """

    __slots__ = ("_block", "_block_frames", "_single")

    def __init__(self, latents: dict[int, torch.Tensor] | None = None) -> None:
        self._single = {} if latents is None else dict(latents)
        self._block_frames: tuple[int, ...] = ()
        self._block: torch.Tensor | None = None

    def __getitem__(self, frame: int) -> torch.Tensor:
        if self._block is not None and frame in self._block_frames:
            return self._block[self._block_frames.index(frame)]
        return self._single[frame]

    def __setitem__(self, frame: int, latent: torch.Tensor) -> None:
        self._spill()
        self._single[frame] = latent

    def __delitem__(self, frame: int) -> None:
        self._spill()
        del self._single[frame]

    def __iter__(self) -> Iterator[int]:
        return iter((*self._single, *self._block_frames))

    def __len__(self) -> int:
        return len(self._single) + len(self._block_frames)

    def __contains__(self, frame: object) -> bool:
        return frame in self._single or frame in self._block_frames

    def move(self, frames: tuple[int, ...], block: torch.Tensor) -> None:
        """What a pass returned for these frames, [len(frames), tokens, channels]. Kept, not copied."""
        if frames != self._block_frames:
            self._spill()
            for frame in frames:
                self._single.pop(frame, None)
        self._block_frames, self._block = frames, block

    def stacked(self, frames: tuple[int, ...]) -> torch.Tensor:
        """[len(frames), tokens, channels]; not to be written."""
        if frames == self._block_frames and self._block is not None:
            return self._block
        return torch.stack([self[frame] for frame in frames])

    def _spill(self) -> None:
        if self._block is not None:
            self._single.update(zip(self._block_frames, self._block.unbind(0), strict=True))
            self._block_frames, self._block = (), None
