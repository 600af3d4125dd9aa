# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: which streams share the next pass when their cells are more than its token budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.layout import Work
from ardiff_engine.engine.passes import Passes
from ardiff_engine.engine.stream import Stream
from ardiff_engine.engine.stream_register import StreamRegister
from ardiff_engine.errors import wrapped
from ardiff_engine.models.spec import ModelSpec


class Turns:
    """max_batch_tokens: what one pass takes at most; None: all streams are in every pass."""

    def __init__(
        self, spec: ModelSpec, register: StreamRegister, passes: Passes, max_batch_tokens: int | None
    ) -> None:
        self._spec = spec
        self._register = register
        self._passes = passes
        self.max_batch_tokens = max_batch_tokens

    def next(self) -> Work:
        """What the streams of the next pass feed, their pages taken. One that cannot say so fails alone."""
        runnable = [s for s in self._register.alive() if s.runnable and not s.ends]
        if self.max_batch_tokens is not None:
            runnable = self._first_in_turn(runnable, self.max_batch_tokens)
        # In the order of submission: streams that go on together keep the layout of their last pass.
        work: Work = []
        for stream in runnable:
            try:
                feed = self._passes.tried_again(stream.feeder.next)
                self._passes.tried_again(partial(stream.prepare, feed))
            except Exception as error:
                stream.fail(wrapped(error))
                continue
            work.append((stream, feed))
        # The collector may end a forgotten reader at any line, here too; packing one that has no latents any
        # more would break the pass for all.
        return [(stream, feed) for stream, feed in work if not stream.done]

    def _first_in_turn(self, streams: list[Stream], budget: int) -> list[Stream]:
        """Those that share the next pass, in the order of submission."""
        spec = self._spec
        planned: list[Stream] = []
        costs: list[int] = []
        for stream in longest_waiting_first(streams):
            try:
                feed = self._passes.tried_again(stream.feeder.next)
            except Exception as error:
                stream.fail(wrapped(error))
                continue
            planned.append(stream)
            costs.append(tokens_of(stream, feed, spec.tokens_per_frame, spec.context_tokens))
        turn = [planned[index] for index in within_budget(costs, budget)]
        for stream in turn:
            self._register.queue_up(stream)
        return sorted(turn, key=lambda stream: stream.number)


def tokens_of(stream: Stream, feed: Feed, tokens_per_frame: int, context_tokens: int) -> int:
    """Tokens that this feed adds to a pass."""
    fed = len(feed.levels) * tokens_per_frame + (context_tokens if feed.roster.feeds_context else 0)
    return len(stream.weights) * fed


def longest_waiting_first(streams: Sequence[Stream]) -> list[Stream]:
    """By place in the queue; who is served goes to its end. Every stream comes first in its turn."""
    return sorted(streams, key=lambda stream: stream.place)


def within_budget(costs: Sequence[int], budget: int) -> list[int]:
    """Indices of what fits, in order of turn. The first always runs, alone if it must: nobody waits for ever.

    Smaller ones behind one that does not fit may fill the rest of the pass; that one then is first before
    long.
    """
    chosen: list[int] = []
    used = 0
    for index, cost in enumerate(costs):
        if not chosen or used + cost <= budget:
            chosen.append(index)
            used += cost
    return chosen
