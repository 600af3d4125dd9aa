# SPDX-License-Identifier: Apache-2.0
"""Which frames of a whole clip see which: bool [query frame, key frame], constant inside a frame."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError


def block_starts(frames: int, block: int, first: int | None = None) -> torch.Tensor:
    """int64 [frames]: where the block of each frame begins; the first block may have another size."""
    first = block if first is None else first
    if min(block, first) < 1:
        raise ConfigError(f"blocks of {block} frames, the first of {first}: expected at least 1.")
    index = torch.arange(frames)
    return torch.where(index < first, 0, (index - first) // block * block + first)


def block_causal(
    frames: int, block: int, *, first: int | None = None, window: int | None = None
) -> torch.Tensor:
    """A frame sees its own block wholly and all blocks before it. A last block may be shorter.

    window: it sees that many frames up to the end of its block."""
    starts = block_starts(frames, block, first)
    visible = starts[None] <= starts[:, None]
    if window is not None:
        sizes = torch.where(starts < (first or block), first or block, block)
        visible &= torch.arange(frames)[None] >= (starts + sizes)[:, None] - window
    return visible


def teacher_forced(frames: int, block: int, *, first: int | None = None) -> torch.Tensor:
    """bool [2 frames, 2 frames] over clean frames, then noisy ones.

    Clean frames see clean blocks up to their own; noisy ones the clean blocks before, and their own block."""
    starts = block_starts(frames, block, first)
    before, same = starts[None] < starts[:, None], starts[None] == starts[:, None]
    return torch.cat(
        [torch.cat([before | same, torch.zeros_like(same)], dim=1), torch.cat([before, same], dim=1)]
    )
