# SPDX-License-Identifier: Apache-2.0
"""Which frames of a clip condition the others: past and future ones are dropped at random for each sample, so
that one network predicts, interpolates and generates (MCVD, arXiv 2205.09853)."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError


def conditioning_frames(
    uniforms: torch.Tensor,
    past: int,
    new: int,
    future: int,
    past_dropped: float,
    future_dropped: float,
    together: bool = False,
) -> torch.Tensor:
    """int64 [B, past + future]: numbers in the clip of past, new and future frames; -1 where one is dropped.

    uniforms: [2, B], for past and future; a side stays if its number is above the probability of dropping it.
    together: one draw, the first, for both sides.
    """
    if uniforms.ndim != 2 or uniforms.shape[0] != 2 or min(past, new, future) < 0 or past + future < 1:
        raise ConfigError(
            f"conditioning_frames: uniforms {list(uniforms.shape)} for {past} past, {new} new and {future} "
            "future frames; expected [2, B], and frames that condition"
        )
    kept_past = uniforms[0] > past_dropped if past_dropped > 0 else torch.ones_like(uniforms[0]) > 0
    kept_future = uniforms[1] > future_dropped if future_dropped > 0 else torch.ones_like(uniforms[1]) > 0
    if together:
        kept_future = kept_past
    frames = torch.cat([torch.arange(past), torch.arange(past + new, past + new + future)])
    kept = torch.cat([kept_past[:, None].expand(-1, past), kept_future[:, None].expand(-1, future)], dim=1)
    return torch.where(kept.cpu(), frames, -1)
