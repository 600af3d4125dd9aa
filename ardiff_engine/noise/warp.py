# SPDX-License-Identifier: Apache-2.0
"""Noise that moves with a picture and stays white: one step of Go-with-the-Flow (arXiv 2501.08331).

Every pixel carries noise and a weight. Along the flow it lands on another pixel. Where several land, their
weighted sum is normalised; where none does, the pixel takes what lies at the other end of the flow. A pixel
that is used n times is divided among n: each gets 1/sqrt(n) of it and fresh noise whose sum over the n is 0.
So all pixels stay independent standard normal numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

FADING, LEAST = 0.9999, 1e-5
"""Weights rise by LEAST, then to the power FADING: none vanishes, and in the long run all are alike again."""


class Warp(NamedTuple):
    """noise [C, H, W]; weight [H, W], positive."""

    noise: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def start(cls, noise: torch.Tensor) -> Warp:
        return cls(noise, torch.ones_like(noise[0]))


def warp_noise(state: Warp, flow: torch.Tensor, fresh: torch.Tensor) -> Warp:
    """The state one frame later.

    flow [2, H, W]: how far a pixel moves to the right and down, in pixels. fresh [C, H, 2W]: independent
    noise, for pixels that move (left half) and for those that are filled (right half).
    """
    channels, rows, columns = state.noise.shape
    pixels = torch.arange(rows * columns, device=flow.device)
    steps = flow.round().long().flatten(1)
    lands, inside = _moved(pixels, steps, rows, columns)
    comes, found = _moved(pixels, -steps, rows, columns)
    # A pixel that would leave the frame stays where it is, as new noise.
    lands = torch.where(inside, lands, pixels)
    reached = torch.zeros_like(inside).index_fill(0, lands, True)
    # Pixels that move, then those that are filled. What comes from nowhere is one group, and new.
    known = torch.cat([inside, ~reached & found])
    sources = torch.cat([pixels, comes])
    noise = torch.where(known, state.noise.flatten(1)[:, sources], 0.0)
    left, right = fresh.reshape(channels, rows, 2, columns).unbind(2)
    fresh = torch.cat([left.flatten(1), right.flatten(1)], dim=1)
    noise, counts = regaussianized(noise, torch.where(known, sources, len(pixels)), fresh)
    weight = torch.where(known, state.weight.flatten()[sources], 1.0) / counts
    moving, filling = weight.split(len(pixels))
    total, squares = (torch.zeros_like(moving).index_add(0, lands, moving**power) for power in (1, 2))
    summed = torch.zeros_like(left.flatten(1)).index_add(1, lands, noise[:, : len(pixels)] * moving)
    summed = summed / squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    new_noise = torch.where(reached, summed, noise[:, len(pixels) :])
    new_weight = torch.where(reached, total, filling)
    new_weight = (new_weight / new_weight.mean() + LEAST) ** FADING
    return Warp(new_noise.reshape_as(state.noise), new_weight.reshape_as(state.weight))


def regaussianized(
    noise: torch.Tensor, groups: torch.Tensor, fresh: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Independent noise from noise [C, N] whose values repeat within groups, and float [N], the size of the
    group of each. groups: int64 [N], one number for all copies of a value. fresh: noise [C, N]."""
    size = int(groups.max()) + 1
    counts = noise.new_zeros(size).index_add(0, groups, torch.ones_like(noise[0]))[groups]
    sums = noise.new_zeros(len(noise), size).index_add(1, groups, fresh)[:, groups]
    return noise / counts.sqrt() + fresh - sums / counts, counts


def blended(background: torch.Tensor, foreground: torch.Tensor, share: float) -> torch.Tensor:
    """((1 - share) background + share foreground), brought back to unit variance if they are independent."""
    return ((1.0 - share) * background + share * foreground) / ((1.0 - share) ** 2 + share**2) ** 0.5


def _moved(
    pixels: torch.Tensor, steps: torch.Tensor, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pixels come to by steps [2, N] to the right and down, and whether that is inside the frame."""
    x, y = pixels % columns + steps[0], pixels // columns + steps[1]
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    return torch.where(inside, y * columns + x, 0), inside
