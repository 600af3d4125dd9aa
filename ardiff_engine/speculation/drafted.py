# SPDX-License-Identifier: Apache-2.0
"""Blocks that a cheaper stream drafts, and that stand in the video where a judge accepts them (SDVG, arXiv
2604.17397)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import torch

from ardiff_engine.arguments import integer
from ardiff_engine.engine import LatentFrame, Stream
from ardiff_engine.errors import ConfigError

Judge = Callable[[Sequence[LatentFrame]], bool]
"""Whether the frames of a drafted block, with the pictures that their engine made of them, may stay."""


def at_least(score: Callable[[LatentFrame], float], threshold: float) -> Judge:
    """Accepts a block whose worst frame scores no less than the threshold."""
    return lambda frames: min(map(score, frames)) >= threshold


class Drafted:
    """One video by two streams, block by block. Iterate it for its frames; when the loop is left, its streams
    have ended too.

    The draft makes a block. Accepted, it is given to the target, which stores K/V of its own for it. Refused,
    it is forgotten: the target makes the block, and it is given to the draft. So the target has the video at
    every moment, and a refused block is, to the bit, what it makes after the frames before.

    target, draft: endless streams that have made nothing yet, of the same given frames, size and blocks; of
        two networks, or of one with fewer steps for the draft. Each in an engine of its own: in one engine
        the target would run along while the draft does. Their memory is a `memory.Window` whose `back` is two
        blocks, their max_ahead 1.
    judge: see `Judge`. num_frames: of the video, given ones included; None: endless.
    blocks_made: so many blocks at the start are made by the target, without a draft.

    accepted, refused: drafted blocks, so far.
    """

    def __init__(
        self,
        target: Stream,
        draft: Stream,
        judge: Judge,
        *,
        num_frames: int | None = None,
        blocks_made: int = 1,
    ) -> None:
        given, sizes = target.request.prefix_frames, [_sizes(target), _sizes(draft)]
        if target is draft or sizes[0] != sizes[1]:
            raise ConfigError(
                "speculation.Drafted of streams that differ in (given frames, blocks, size): "
                f"{sizes[0]} and {sizes[1]}; give two streams of the same video"
            )
        if target.num_frames is not None or draft.num_frames is not None:
            raise ConfigError(
                "speculation.Drafted of finite streams: one that is finished cannot go back. Submit them "
                "with num_frames=None, and give the number of frames here"
            )
        if not callable(judge):
            raise ConfigError(f"speculation.Drafted: judge {judge!r:.80}, expected a function of frames")
        self.num_frames = None if num_frames is None else integer("num_frames", num_frames, low=given + 1)
        self.accepted = self.refused = 0
        self._target, self._draft, self._judge = target, draft, judge
        self._blocks_made = integer("blocks_made", blocks_made, low=0)
        self._given = given

    def __iter__(self) -> Iterator[LatentFrame]:
        with contextlib.closing(iter(self._target)) as made, contextlib.closing(iter(self._draft)) as drafts:
            first = self._given
            for number in count():
                block = self._target.block(first)
                first = block.stop
                for frame in self._next(block, number, made, drafts):
                    yield frame
                    if frame.index + 1 == self.num_frames:
                        return

    def result(self) -> torch.Tensor:
        """Run to the end: clean latents [num_frames, ...] in the layout of the model, given ones included.
        ConfigError: an endless video."""
        if self.num_frames is None:
            raise ConfigError("result() of an endless video: iterate it, or give num_frames")
        made = torch.stack([frame.latent for frame in self])
        given = self._target.request.prefix
        return made if given is None or not self._given else torch.cat([given.to(made), made])

    def _next(
        self, block: range, number: int, made: Iterator[LatentFrame], drafts: Iterator[LatentFrame]
    ) -> list[LatentFrame]:
        if number >= self._blocks_made:
            frames = list(islice(drafts, len(block)))
            if self._judge(frames):
                self.accepted += 1
                _give(self._target, block, frames)
                return frames
            self.refused += 1
        frames = list(islice(made, len(block)))
        _give(self._draft, block, frames)
        return frames


def _give(stream: Stream, block: range, frames: Sequence[LatentFrame]) -> None:
    stream.rollback(block.start, torch.stack([frame.latent for frame in frames]))


def _sizes(stream: Stream) -> tuple[object, ...]:
    given = stream.request.prefix_frames
    first = stream.block(given)
    return given, (first, stream.block(first.stop)), stream.request.size
