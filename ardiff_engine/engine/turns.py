# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: which streams share the next pass when their cells are more than its token budget."""

from __future__ import annotations

from collections.abc import Sequence

from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.stream import Stream


def tokens_of(stream: Stream, feed: Feed, tokens_per_frame: int, context_tokens: int) -> int:
    """Tokens that this feed adds to a pass."""
    fed = len(feed.levels) * tokens_per_frame + (context_tokens if feed.roster.feeds_context else 0)
    return len(stream.weights) * fed


def longest_waiting_first(streams: Sequence[Stream]) -> list[Stream]:
    """By place in the queue; who is served goes to its end. Every stream comes first in its turn."""
    return sorted(streams, key=lambda stream: stream.place)


def within_budget(costs: Sequence[int], budget: int | None) -> list[int]:
    """Indices of what fits, in order of turn. The first always runs, alone if it must: nobody waits for ever.

    Smaller ones behind one that does not fit may fill the rest of the pass; that one then is first before
    long.
    """
    if budget is None:
        return list(range(len(costs)))
    chosen: list[int] = []
    used = 0
    for index, cost in enumerate(costs):
        if not chosen or used + cost <= budget:
            chosen.append(index)
            used += cost
    return chosen
