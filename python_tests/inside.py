# SPDX-License-Identifier: Apache-2.0
"""The few looks behind a stream's handle that tests take: its latents, pages and place in the plan."""

from __future__ import annotations

import torch

from ardiff_engine.engine import Stream
from ardiff_engine.engine.state import StreamState


def inside(stream: Stream) -> StreamState:
    """What the engine knows of the stream."""
    return stream._state


def poison(stream: Stream) -> None:
    """All latents of the stream are NaN from here on."""
    latents = inside(stream).latents
    latents.update({frame: torch.full_like(latent, torch.nan) for frame, latent in latents.items()})
