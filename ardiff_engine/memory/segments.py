# SPDX-License-Identifier: Apache-2.0
"""Which parts of old frames are worth keeping: those whose keys change most (Forcing-KV).

A frame's tokens are cut into segments of the same size, in raster order. A segment that hardly differs from
the same one a frame later is told again by that; one that differs holds what would be lost.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from ardiff_engine.errors import TensorError


def segment_similarity(keys: torch.Tensor, segments: int) -> torch.Tensor:
    """keys [F + 1, tokens, heads, head_dim] of frames in their order -> float32 [F, segments]: the mean over
    a segment's tokens of the cosine between a token and the same one a frame later, over all heads at once.

    TensorError: fewer than two frames, or tokens that are no multiple of the segments.
    """
    if keys.ndim != 4 or keys.shape[0] < 2 or segments < 1 or keys.shape[1] % segments:
        raise TensorError(
            f"segment_similarity: keys {list(keys.shape)} in {segments} segments; expected [F + 1, tokens, "
            "heads, head_dim] with tokens in whole segments"
        )
    flat = keys.to(torch.float32).flatten(2)
    return cosine_similarity(flat[:-1], flat[1:], dim=-1).unflatten(1, (segments, -1)).mean(dim=-1)


def least_similar(similarity: torch.Tensor, keep: int) -> torch.Tensor:
    """int64 [keep]: numbers of the least similar segments, over all frames in a row, ascending."""
    return similarity.flatten().topk(keep, largest=False).indices.sort().values


def take_segments(rows: torch.Tensor, kept: torch.Tensor, segments: int) -> torch.Tensor:
    """Of rows [F, tokens, ...] those of the kept segments: [keep * tokens / segments, ...]."""
    parts = rows.unflatten(1, (segments, -1)).flatten(0, 1)
    return parts[kept].flatten(0, 1)
