# SPDX-License-Identifier: Apache-2.0
"""The views of a pass: which pages each of its query frames sees, as one FrameTable.

A frame sees its context, the sinks before its window, and a run of frames up to itself (or up to the newest,
where frames see later ones). Frames of a sequence whose views start alike form one group: each sees a prefix
of the group's list. Windows overlap, so the pages of a sequence are listed once, its context and then the
frames that any view shows, and every view is gathered from there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from ardiff_engine.engine.feed import Roster
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ops.frame_table import FrameTable


@dataclass(frozen=True, slots=True)
class Views:
    """Of one sequence, in places of its list of shown frames, so that windows that slide stay equal.

    num_shown: length of that list. starts, stops: of each fed frame, its run. sinks: how many lie before it.
    feeds_context: whether the context is fed as well.
    """

    num_shown: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    sinks: tuple[int, ...]
    feeds_context: bool


def views_of(roster: Roster, policy: MemoryPolicy) -> tuple[list[int], Views]:
    """The frames that any fed frame sees, in order, and who sees which of them."""
    frames, newest = roster.frames, roster.newest
    firsts = [policy.first_seen(frame, newest) for frame in frames]
    shown = roster.visible(min(firsts), frames[-1])
    if not roster.sinks:
        # One run of frames: the places follow from the numbers.
        base = shown[0]
        starts = tuple([first - base if first > base else 0 for first in firsts])
        stops = tuple([frame + 1 - base for frame in frames])
        return shown, Views(len(shown), starts, stops, (0,) * len(frames), roster.feeds_context)
    end = roster.sinks.stop
    return shown, Views(
        num_shown=len(shown),
        starts=tuple([bisect_left(shown, first) for first in firsts]),
        stops=tuple([bisect_right(shown, frame) for frame in frames]),
        sinks=tuple([bisect_left(shown, min(end, first)) for first in firsts]),
        feeds_context=roster.feeds_context,
    )


@dataclass(frozen=True, slots=True, eq=False)
class PageLists:
    """The views of all sequences. table: with places in the joined lists of pages instead of pages.
    contexts: [K, pages] the places of the contexts that are fed; frames: [N, pages] of the fed frames."""

    table: FrameTable
    listed: np.ndarray
    contexts: np.ndarray
    frames: np.ndarray


def page_lists(
    sequences: list[Views], spec: ModelSpec, context_valid: list[int], frame_valid: list[int]
) -> PageLists:
    """Groups in token order: contexts, then frames. *_valid: rows that exist in each page of one of them."""
    context, per_frame = len(context_valid), len(frame_valid)
    num_shown = np.array([views.num_shown for views in sequences])
    heads = np.cumsum(context + num_shown * per_frame) - (context + num_shown * per_frame)

    # Of each fed frame: the first place of its sequence, its run of shown frames, the sinks before it.
    owners = np.repeat(np.arange(len(sequences)), [len(views.starts) for views in sequences])
    starts, own_stops, sinks = (
        np.array([value for views in sequences for value in getattr(views, name)], np.int64)
        for name in ("starts", "stops", "sinks")
    )
    begins = heads[owners] + context
    alike = np.stack([owners, starts, sinks])
    groups = np.flatnonzero(np.append(True, (np.diff(alike, axis=1) != 0).any(axis=0)))
    members = np.diff(groups, append=len(starts))
    lasts = groups + members - 1
    stops = np.repeat(own_stops[lasts], members) if spec.frames_see_later else own_stops
    seen = context + (sinks + stops - starts) * per_frame

    # Each group's list is the context, the sinks and the run of its last frame.
    run_begins = np.stack([begins[groups] - context, begins[groups], (begins + starts * per_frame)[groups]])
    run_lengths = np.stack(
        [
            np.full(len(groups), context),
            sinks[groups] * per_frame,
            (stops[lasts] - starts[groups]) * per_frame,
        ]
    )
    query_tokens = np.full(len(starts), spec.tokens_per_frame)
    fed = np.flatnonzero([views.feeds_context for views in sequences])
    if len(fed):
        # Where a context sees more than itself, all frames are fed (no K/V can be kept) and shown.
        lengths = np.full(len(fed), context)
        if spec.condition_sees_frames:
            lengths += num_shown[fed] * per_frame
        none = np.zeros_like(lengths)
        run_begins = np.concatenate([np.stack([heads[fed], none, none]), run_begins], axis=1)
        run_lengths = np.concatenate([np.stack([lengths, none, none]), run_lengths], axis=1)
        query_tokens = np.concatenate([np.full(len(fed), spec.context_tokens), query_tokens])
        members = np.concatenate([np.ones_like(fed), members])
        seen = np.concatenate([lengths, seen])

    valid = np.array(
        [rows for views in sequences for rows in context_valid + frame_valid * views.num_shown], np.int32
    )
    listed = ranges(run_begins.T.reshape(-1), run_lengths.T.reshape(-1))
    entries = run_lengths.sum(axis=0)
    return PageLists(
        table=FrameTable.from_flat(query_tokens, members, entries, listed, valid[listed], seen),
        listed=listed,
        contexts=heads[fed][:, None] + np.arange(context),
        frames=(begins + (own_stops - 1) * per_frame)[:, None] + np.arange(per_frame),
    )


def ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """begins[0], begins[0] + 1, ... (lengths[0] of them), begins[1], ..."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1])
