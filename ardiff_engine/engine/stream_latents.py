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

    __slots__ = ("block", "block_frames", "places")

    def __init__(self, latents: dict[int, torch.Tensor] | None = None) -> None:
        # A latent of its own, or its row in the block.
        self.places: dict[int, torch.Tensor | int] = {} if latents is None else dict(latents)
        self.block: torch.Tensor = torch.empty(0)
        # Empty once a row of the block is not a frame's latent any more.
        self.block_frames: tuple[int, ...] = ()

    def __getitem__(self, frame: int) -> torch.Tensor:
        place = self.places[frame]
        return self.block[place] if isinstance(place, int) else place

    def __setitem__(self, frame: int, latent: torch.Tensor) -> None:
        if isinstance(self.places.get(frame), int):
            self.block_frames = ()
        self.places[frame] = latent

    def __delitem__(self, frame: int) -> None:
        if isinstance(self.places.pop(frame), int):
            self.block_frames = ()

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, frame: object) -> bool:
        return frame in self.places

    def clear(self) -> None:
        self.places.clear()
        self.block, self.block_frames = torch.empty(0), ()

    def move(self, frames: tuple[int, ...], block: torch.Tensor) -> None:
        """What a pass returned for these frames, [len(frames), tokens, channels]. Kept, not copied."""
        places = self.places_after(frames)
        self.places, self.block_frames, self.block = places, frames, block

    def places_after(self, frames: tuple[int, ...]) -> dict[int, torch.Tensor | int]:
        """`places`, if these frames become the rows of another block. Nothing has changed yet."""
        if frames and frames == self.block_frames:
            return self.places
        kept = {frame: self[frame] for frame in self.places.keys() - frames}
        return {**kept, **dict(zip(frames, range(len(frames)), strict=True))}

    def runs(self, frames: tuple[int, ...]) -> list[torch.Tensor]:
        """The latents of `frames` in that order, as tensors [some frames, tokens, channels]; not to be
        written."""
        if frames and frames == self.block_frames:
            return [self.block]
        found: list[torch.Tensor] = []
        rows = range(0)
        for frame in frames:
            place = self.places[frame]
            if isinstance(place, int) and rows and place == rows.stop:
                rows = range(rows.start, place + 1)
                continue
            if rows:
                found.append(self.block[rows.start : rows.stop])
            rows = range(place, place + 1) if isinstance(place, int) else range(0)
            if not isinstance(place, int):
                found.append(place[None])
        if rows:
            found.append(self.block[rows.start : rows.stop])
        return found
