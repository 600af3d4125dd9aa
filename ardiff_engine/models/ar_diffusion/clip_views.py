# SPDX-License-Identifier: Apache-2.0
"""Views of whole clips, where the pages are the clip's own K and V, laid out frame by frame."""

from __future__ import annotations

from functools import lru_cache

from ardiff_engine.models.ar_diffusion.config import Mask
from ardiff_engine.ops.frame_table import FrameTable


@lru_cache(maxsize=64)
def clip_table(clips: int, frames: int, length: int, context_tokens: int, mask: Mask) -> FrameTable:
    """Views of whole clips whose pages lie one after the other: context pages, then one page per frame.

    One group per clip. `seen` is the mask: a frame of a causal model sees the pages up to its own.
    """
    context_pages = -(-context_tokens // length)
    per_clip = context_pages + frames
    everything = per_clip
    if mask == "none":
        seen = [everything] * (frames + 1)
    else:
        own = context_pages if mask == "temporal_causal" else everything
        seen = [own] + [context_pages + f + 1 for f in range(frames)]
    last = context_tokens - (context_pages - 1) * length
    valid = [length] * (context_pages - 1) + [last] + [length] * frames
    return FrameTable.build(
        query_tokens=[[context_tokens] + [length] * frames] * clips,
        pages=[list(range(c * per_clip, (c + 1) * per_clip)) for c in range(clips)],
        valid=[valid] * clips,
        seen=[seen] * clips,
    )


@lru_cache(maxsize=64)
def history_table(clips: int, frames: int, length: int, context_tokens: int) -> FrameTable:
    """Views for teacher forcing. Per clip: context pages, frames - 1 pages of history, then `frames` pages.

    Context and history are one causal group; frame f of the clip is a group of its own, which sees the
    context, history 0 .. f - 1 and itself.
    """
    past = frames - 1
    context_pages = -(-context_tokens // length)
    per_clip = context_pages + past + frames
    head = [length] * (context_pages - 1) + [context_tokens - (context_pages - 1) * length]
    query_tokens: list[list[int]] = []
    pages: list[list[int]] = []
    valid: list[list[int]] = []
    seen: list[list[int]] = []
    for first in range(0, clips * per_clip, per_clip):
        query_tokens.append([context_tokens] + [length] * past)
        pages.append(list(range(first, first + context_pages + past)))
        valid.append(head + [length] * past)
        seen.append([context_pages] + [context_pages + f + 1 for f in range(past)])
        for f in range(frames):
            query_tokens.append([length])
            own = first + context_pages + past + f
            pages.append([*range(first, first + context_pages + f), own])
            valid.append(head + [length] * (f + 1))
            seen.append([context_pages + f + 1])
    return FrameTable.build(query_tokens=query_tokens, pages=pages, valid=valid, seen=seen)
