# SPDX-License-Identifier: Apache-2.0
"""Passes in which nothing changes but levels, for all streams at a time.

From a pass that starts a frame, or the one after it if that stores K/V of others, to the one that finishes a
frame every stream feeds the same frames again, one level higher. Then neither streams nor plans are asked:
rows of the tables move on by one, and what the solver returned is fed again. The streams catch up when the
run ends: before a frame starts or finishes, when a stream joins, leaves or is paused, and whenever somebody
looks at the latents or the place in the plan of one that takes part. So nobody can tell that they had been
left behind, and a pass costs the host the same for one stream as for a hundred.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from ardiff_engine.device import upload
from ardiff_engine.engine.batch import Batch, Packer
from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.verdict import Verdict, parts_of
from ardiff_engine.host_copy import HostCopy

# To begin and to end a run costs the host about as much as a pass.
LEAST_PASSES = 2


class SteadyRun:
    """version: of the register, when the run began."""

    def __init__(self, packer: Packer, work: Work, limit: int, version: int) -> None:
        # Not held: a stream that nobody reads is to be garbage while it takes part, too.
        self._members: list[tuple[weakref.ref[Stream], Feed]] = [(weakref.ref(s), feed) for s, feed in work]
        self._packer = packer
        self._limit = limit
        self.version = version
        self._ended = self._settling = False
        self._layout = packer.layout(work)
        self._passed = np.array([feed.passed for _, feed in work], np.int32)
        x, self._condition = packer.inputs(work)
        # Passes done, what the last one returned, what the next one feeds. Replaced as one: an error or an
        # interrupt between two of them would go on with another video.
        self._done: tuple[int, torch.Tensor, torch.Tensor] = 0, x[:0], x
        source = _source(work)
        self._source = None if source is None else upload(source, x.device)
        self._parts = parts_of(work)

    @property
    def passes(self) -> int:
        """How many it has done."""
        return self._done[0]

    @property
    def over(self) -> bool:
        return self._ended or self.passes >= self._limit

    def batch(self) -> Batch:
        """Of the next pass."""
        passes, _, x = self._done
        return self._packer.fill(self._layout, self._passed + passes, x, self._condition)

    def accept(self, latents: torch.Tensor) -> None:
        """What the solver made of the frames that move, [U, L, C]: the pass is done, unless it raises."""
        passes, _, x = self._done
        fed = latents if self._source is None else torch.cat([latents, x])[self._source]
        self._done = passes + 1, latents, fed

    def verdict(self, findings: HostCopy) -> Verdict:
        """Of the pass that the last batch was for, before it is accepted."""
        passes, _, x = self._done
        return Verdict(self._parts, findings, x.device, passes)

    def begin(self) -> None:
        """The streams are left alone from here on."""
        for ref, _ in self._members:
            stream = ref()
            if stream is not None:
                stream.join(self)

    def settle(self) -> bool:
        """Bring the streams to where the run has come; whether all are there. After an interrupt it can be
        called again: those that have caught up do not again.

        While it is called it does nothing: the collector may end a stream just then, which settles the run,
        and one that moves must not be moved from the start.
        """
        if self._settling:
            return False
        self._ended = self._settling = True
        try:
            passes, moved, _ = self._done
            counts = [len(feed.roster.updated) if passes else 0 for _, feed in self._members]
            for (ref, feed), latents in zip(self._members, moved.split(counts), strict=True):
                stream = ref()
                if stream is not None:
                    stream.catch_up(self, Feed(feed.roster, feed.passed + passes - 1), passes, latents)
        finally:
            self._settling = False
        return True


def _source(work: Work) -> torch.Tensor | None:
    """int64 [N]: where each cell's next input lies in what the solver returns, followed by the inputs.

    None if the two are the same: every cell moves, and has one branch.
    """
    if all(len(stream.weights) == 1 and all(feed.roster.updates) for stream, feed in work):
        return None
    moving = sum(len(feed.roster.updated) for _, feed in work)
    source: list[int] = []
    begin = 0
    for stream, feed in work:
        for _ in stream.weights:
            at = begin
            for updates in feed.roster.updates:
                source.append(at if updates else moving + len(source))
                at += updates
        begin += len(feed.roster.updated)
    return torch.tensor(source, dtype=torch.int64)
