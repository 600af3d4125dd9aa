# SPDX-License-Identifier: Apache-2.0
"""Calls of text-to-video pipelines on small random models, and pictures for them."""

from __future__ import annotations

import torch

SIZE = (32, 48)
CALL = {"num_frames": 21, "size": SIZE, "seed": 0, "progress": False}
PROMPTS = ["a red cat walks", "blue dog on the beach"]


def clip(frames: int, height: int = SIZE[0], width: int = SIZE[1]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator).to(torch.uint8)
