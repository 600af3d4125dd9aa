# SPDX-License-Identifier: Apache-2.0
"""The latents of one stream's frames."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """places: of each frame, a latent of its own, or its row in `block`. frames: those of the rows, in order;
    empty once a row is not its frame's latent any more."""

    places: dict[int, torch.Tensor | int]
    frames: tuple[int, ...]
    block: torch.Tensor


class StreamLatents(MutableMapping[int, torch.Tensor]):
    """Frame -> latent [tokens, channels].

    The frames that one pass has moved lie behind each other in what it returned, and are wanted in that order
    by the next pass: they stay rows of that tensor, so that nothing is cut up and put together again.

    rows: replaced as a whole by what `after` gives, so that an interrupt finds the old ones or the new ones.
    """

    __slots__ = ("rows",)

    def __init__(self, latents: dict[int, torch.Tensor] | None = None) -> None:
        self.rows = Rows({} if latents is None else dict(latents), (), torch.empty(0))

    def __getitem__(self, frame: int) -> torch.Tensor:
        rows = self.rows
        place = rows.places[frame]
        return rows.block[place] if isinstance(place, int) else place

    def __setitem__(self, frame: int, latent: torch.Tensor) -> None:
        rows = self.rows
        if isinstance(rows.places.get(frame), int):
            self.rows = Rows(rows.places, (), rows.block)
        rows.places[frame] = latent

    def __delitem__(self, frame: int) -> None:
        rows = self.rows
        if isinstance(rows.places[frame], int):
            self.rows = Rows(rows.places, (), rows.block)
        del rows.places[frame]

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.places)

    def __len__(self) -> int:
        return len(self.rows.places)

    def __contains__(self, frame: object) -> bool:
        return frame in self.rows.places

    def clear(self) -> None:
        self.rows = Rows({}, (), torch.empty(0))

    def missing(self, frames: tuple[int, ...]) -> list[int]:
        """Those that have no latent."""
        places = self.rows.places
        return [frame for frame in frames if frame not in places]

    def after(self, frames: tuple[int, ...], block: torch.Tensor) -> Rows:
        """`rows` after a pass that returned `block` [len(frames), tokens, channels] for these frames. It is
        kept, not copied. Nothing has changed yet."""
        places = self.rows.places
        if not frames or frames != self.rows.frames:
            kept = {frame: self[frame] for frame in places.keys() - frames}
            places = {**kept, **dict(zip(frames, range(len(frames)), strict=True))}
        return Rows(places, frames, block)

    def runs(self, frames: tuple[int, ...]) -> list[torch.Tensor]:
        """The latents of `frames` in that order, as tensors [some frames, tokens, channels]; not to be
        written."""
        rows = self.rows
        places, block = rows.places, rows.block
        if frames and frames == rows.frames:
            return [block]
        found: list[torch.Tensor] = []
        run = range(0)
        for frame in frames:
            place = places[frame]
            if isinstance(place, int) and run and place == run.stop:
                run = range(run.start, place + 1)
                continue
            if run:
                found.append(block[run.start : run.stop])
            run = range(place, place + 1) if isinstance(place, int) else range(0)
            if not isinstance(place, int):
                found.append(place[None])
        if run:
            found.append(block[run.start : run.stop])
        return found
