# SPDX-License-Identifier: Apache-2.0
"""Rotary positions over time, rows and columns.

Of the D/2 pairs of neighbouring channels of a head, the first D/2 − 2·⌊D/6⌋ turn with time, then ⌊D/6⌋ with
the row and ⌊D/6⌋ with the column. Pair m of the n pairs of an axis has the frequency 10000^(−m/n), times
`time_scale` on the axis of time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def axis_of_pairs(head_dim: int) -> torch.Tensor:
    """int64 [D/2]: 0 time, 1 row, 2 column."""
    side = head_dim // 6
    counts = torch.tensor([head_dim // 2 - 2 * side, side, side])
    return torch.repeat_interleave(torch.arange(3), counts)


def frequencies(head_dim: int, time_scale: float = 1.0) -> torch.Tensor:
    """float64 [D/2]"""
    side = head_dim // 6
    counts = (head_dim // 2 - 2 * side, side, side)
    time, *rest = [10000.0 ** (-torch.arange(n, dtype=torch.float64) / n) for n in counts]
    return torch.cat([time_scale * time, *rest])


def axis_frequencies(head_dim: int, time_scale: float = 1.0) -> torch.Tensor:
    """float64 [3, D/2]: the frequency of each pair on the axis that it turns with, 0 on the others."""
    return F.one_hot(axis_of_pairs(head_dim), 3).T.double() * frequencies(head_dim, time_scale)


def token_positions(frames: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """int64 [F·rows·columns, 3] (time, row, column) of frames at positions `frames` [F], in token order."""
    grid = torch.meshgrid(
        frames,
        torch.arange(rows, device=frames.device),
        torch.arange(columns, device=frames.device),
        indexing="ij",
    )
    return torch.stack(grid, dim=-1).reshape(-1, 3)


def rotation(
    positions: torch.Tensor, head_dim: int, time_scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 cosine and sine [T, D/2] of tokens at positions [T, 3]."""
    axis = axis_of_pairs(head_dim).to(positions.device)
    angles = positions[:, axis].double() * frequencies(head_dim, time_scale).to(positions.device)
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x [..., T, heads, D]: pairs (a, b) -> (a cos − b sin, a sin + b cos)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[:, None].to(x.dtype), sine[:, None].to(x.dtype)
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
