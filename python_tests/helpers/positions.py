# SPDX-License-Identifier: Apache-2.0
"""Positions of a pass, as `CellBatch` has them."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def token_positions(frames: Iterable[int], tokens: int) -> torch.Tensor:
    """int64 [frames·tokens, 2] of frames at these places, with one axis of tokens."""
    return torch.cartesian_prod(torch.tensor(list(frames)), torch.arange(tokens))
