# SPDX-License-Identifier: Apache-2.0
"""What the engine, the memory and the plans must know of a network: facts, as numbers and booleans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Literal

from torch import Tensor

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.condition_rows import condition_rows, distinct_of_parts

ConditionKind = Literal["joint", "cross", "none"]
Size = tuple[int, int]
"""Rows and columns of a latent frame."""


@dataclass(frozen=True, slots=True)
class ConditionSpec:
    """How a condition (text, class, ...) reaches the frames.

    kind: `joint`: its tokens are the first ones of the self-attention sequence. `cross`: every layer has keys
        and values of its own for it, written once. `none`: the network takes no condition.
    tokens: K/V rows of one condition in every layer; 0 with `none`.
    shape: of the tensor of one condition, as `VideoModel.condition` returns it.
    parts: of a cross condition whose rows are not one sequence (a prompt and a picture): rows of each part.
        Every part has pages and a table of its own. (): all rows are one part.
    counted: K and V of a row follow from that row alone. Then rows at the end of a part that are all equal
        are stored as one, and counted (`condition_rows`).
    """

    kind: ConditionKind
    tokens: int
    shape: tuple[int, ...]
    parts: tuple[int, ...] = ()
    counted: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """Of each part."""
        return self.parts or (self.tokens,)

    def pages(self, page_rows: int) -> tuple[int, ...]:
        """Pages of each part of one condition."""
        return tuple(-(-rows // page_rows) for rows in self.rows)

    def distinct(self, condition: Tensor) -> tuple[int, ...]:
        """Rows of each part that are stored, at least."""
        return distinct_of_parts(condition, self.rows) if self.counted else self.rows

    def slots(self, pages: Sequence[int], page_rows: int, distinct: Sequence[int] | None = None) -> list[int]:
        """Row of the pool, page * page_rows + row, of each token; -1 of those that are not stored. pages: of
        all parts in order. distinct: see there; None: all rows."""
        found: list[int] = []
        held = iter(pages)
        for rows, own, count in zip(self.rows, distinct or self.rows, self.pages(page_rows), strict=True):
            firsts = [page * page_rows for page in islice(held, count)]
            places = condition_rows(rows, own, page_rows).places
            found += [-1 if at < 0 else firsts[at // page_rows] + at % page_rows for at in places]
        return found


@dataclass(frozen=True, slots=True)
class FrameInput:
    """Numbers that a network takes for every frame beside its latents.

    channels: of them. places: they are given for every place of a latent frame, in its layout ([channels,
        rows, columns] or [tokens, channels]); otherwise [channels] for the whole frame.
    """

    name: str
    channels: int
    places: bool = False

    def shape(self, spec: ModelSpec, size: Size | None = None) -> tuple[int, ...]:
        """Of one frame's, as users give them."""
        if not self.places:
            return (self.channels,)
        latents = spec.frame_shape(size)
        return (*latents[:-1], self.channels) if spec.patch is None else (self.channels, *latents[1:])

    def width(self, spec: ModelSpec) -> int:
        """Of a token's row, as the network gets them."""
        return self.channels * prod(spec.patch or ()) if self.places else self.channels


NO_CONDITION = ConditionSpec("none", 0, (0,))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of a network, and what the keys and values of a frame depend on.

    num_frames: frames that the network was trained to see together; the default size of a memory.
    channels: of a token, as solver and engine see it.
    tokens_per_frame: of a network whose frames are all alike. Otherwise `patch`: rows and columns of latents
        that make one token; and `size`: of the frames it was trained on, and of requests that name none.
    layers, heads, kv_heads, head_dim: of the pages.
    frame_inputs: what it takes for every frame beside the latents.
    movable: whether keys stay valid while the video grows beyond `num_frames` (rotary positions).
    frame_angles: radians by which each of the head_dim / 2 pairs of a key turns for a frame that is seen one
        place later; None: keys stay where they were written.
    grid_angles: likewise for a token one place further along each axis of its frame's grid. None: keys cannot
        be turned back to how they were before they got a place.
    longest: frames after which positions end; None: never.
    forgets: K/V of a finished frame depend on itself and on earlier frames only. Otherwise every visible
        frame must be fed in every pass.
    frames_see_later: every frame sees all frames of the pass, later ones too.
    views_per_layer: every layer sees by `CellBatch.table_of`, not all by one table; views_per_head: and every
        kv head of it, by `CellBatch.tables_of`.
    condition_sees_frames: the tokens of a joint condition see the frames as well.
    reads_back: what a pass does depends on values on the device. Such passes are never CUDA graphs.
    branches_apart: K/V of a guidance branch are where no other branch can read them.
    """

    num_frames: int
    channels: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens_per_frame: int | None = None
    patch: Size | None = None
    size: Size | None = None
    condition: ConditionSpec = NO_CONDITION
    frame_inputs: tuple[FrameInput, ...] = ()
    movable: bool = True
    frame_angles: tuple[float, ...] | None = None
    grid_angles: tuple[tuple[float, ...], ...] | None = None
    longest: int | None = None
    forgets: bool = True
    frames_see_later: bool = False
    condition_sees_frames: bool = False
    views_per_layer: bool = False
    views_per_head: bool = False
    reads_back: bool = False
    branches_apart: bool = False

    def grid(self, size: Size | None = None) -> tuple[int, ...]:
        """Tokens of a frame along each of its axes: rows and columns, or one axis alone.

        ConfigError: a size that is no multiple of the patch, or of a network whose frames are all alike.
        """
        if self.patch is None:
            if size is not None:
                raise ConfigError(f"size: got {size}, expected None: frames of this network have one size.")
            assert self.tokens_per_frame is not None, "checked by models.agreement.check_spec"
            return (self.tokens_per_frame,)
        rows, columns = size = size or self.size or self.patch
        if rows < 1 or columns < 1 or rows % self.patch[0] or columns % self.patch[1]:
            raise ConfigError(
                f"size: got {size}, expected rows and columns of the latents in multiples of {self.patch}."
            )
        return rows // self.patch[0], columns // self.patch[1]

    def tokens(self, size: Size | None = None) -> int:
        """K/V rows of one frame in every layer; as `grid`."""
        return prod(self.grid(size))

    def frame_shape(self, size: Size | None = None) -> tuple[int, ...]:
        """Of a latent frame as users see it: [channels, rows, columns], or [tokens, channels]; as `grid`."""
        grid = self.grid(size)
        if self.patch is None:
            return *grid, self.channels
        rows, columns = self.patch
        return self.channels // (rows * columns), grid[0] * rows, grid[1] * columns

    @property
    def context_tokens(self) -> int:
        """Tokens of a condition in the self-attention sequence."""
        return self.condition.tokens if self.condition.kind == "joint" else 0
