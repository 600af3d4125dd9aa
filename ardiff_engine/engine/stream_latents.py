# SPDX-License-Identifier: Apache-2.0
"""The latents of one stream's frames."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import torch


class StreamLatents(MutableMapping[int, torch.Tensor]):
    """Frame -> latent [tokens, channels].

    The frames that one pass has moved lie behind each other in what it returned, and are wanted in that order
    by the next pass: they stay rows of that tensor, so that nothing is cut up and put together again.
    """

    __slots__ = ("_block", "_block_frames", "_places")

    def __init__(self, latents: dict[int, torch.Tensor] | None = None) -> None:
        # A latent of its own, or its row in the block.
        self._places: dict[int, torch.Tensor | int] = {} if latents is None else dict(latents)
        self._block: torch.Tensor = torch.empty(0)
        # Empty once a row of the block is not a frame's latent any more.
        self._block_frames: tuple[int, ...] = ()

    def __getitem__(self, frame: int) -> torch.Tensor:
        place = self._places[frame]
        return self._block[place] if isinstance(place, int) else place

    def __setitem__(self, frame: int, latent: torch.Tensor) -> None:
        if isinstance(self._places.get(frame), int):
            self._block_frames = ()
        self._places[frame] = latent

    def __delitem__(self, frame: int) -> None:
        if isinstance(self._places.pop(frame), int):
            self._block_frames = ()

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, frame: object) -> bool:
        return frame in self._places

    def clear(self) -> None:
        self._places.clear()
        self._block, self._block_frames = torch.empty(0), ()

    def move(self, frames: tuple[int, ...], block: torch.Tensor) -> None:
        """What a pass returned for these frames, [len(frames), tokens, channels]. Kept, not copied."""
        if not frames or frames != self._block_frames:
            for frame in self._places.keys() - frames:
                self._places[frame] = self[frame]
            self._places.update(zip(frames, range(len(frames)), strict=True))
        self._block_frames, self._block = frames, block

    def runs(self, frames: tuple[int, ...]) -> list[torch.Tensor]:
        """The latents of `frames` in that order, as tensors [some frames, tokens, channels]; not to be
        written."""
        if frames and frames == self._block_frames:
            return [self._block]
        found: list[torch.Tensor] = []
        rows = range(0)
        for frame in frames:
            place = self._places[frame]
            if isinstance(place, int) and rows and place == rows.stop:
                rows = range(rows.start, place + 1)
                continue
            if rows:
                found.append(self._block[rows.start : rows.stop])
            rows = range(place, place + 1) if isinstance(place, int) else range(0)
            if not isinstance(place, int):
                found.append(place[None])
        if rows:
            found.append(self._block[rows.start : rows.stop])
        return found
