# SPDX-License-Identifier: Apache-2.0
"""Mean keys of frames, and a router that goes by them: to frames whose keys are like those of the newest
block."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.spec import ModelSpec


def mean_keys(
    k_pages: torch.Tensor, pages: Sequence[int], tokens: int, place: int, spec: ModelSpec
) -> torch.Tensor:
    """float32 [layers, kv_heads, head_dim] in host memory, of a frame whose tokens lie in these pages of
    k_pages [layers, P, kv_heads, page_rows, head_dim], written at `place` and turned back to place 0.

    To turn is linear, and all tokens of a frame stand at one place in time: so the mean is turned.
    """
    ids = torch.tensor(pages, device=k_pages.device)
    rows = k_pages[:, ids].transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    mean = rows.float().mean(2).cpu()[:, None, :, None].contiguous()
    if spec.frame_angles is not None and place:
        angles = torch.tensor(spec.frame_angles, dtype=torch.float64)
        ops.rotate_pages_(mean, torch.tensor([0]), torch.tensor([-place]), angles)
    return mean[:, 0, :, 0]


class Looked(Protocol):
    """What it needs of an `engine.Stream`."""

    @property
    def latents(self) -> Mapping[int, torch.Tensor]: ...
    def mean_keys(self, frame: int) -> torch.Tensor: ...


class MeanKeys:
    """A router of one stream. The score of a frame: its mean keys times those of the block before the one
    that starts, over all layers and heads; the highest are chosen, of equal ones the later.

    `Request(memory=Routed(window, 5, router), on_step=router.look)`: after each pass it notes the keys of
    the newest frames. So nothing waits for what a pass measures. What has no key yet is not chosen.

    recent: frames whose keys may still change, two blocks.
    """

    def __init__(self, recent: int = 6) -> None:
        self._recent = recent
        self._keys: dict[int, torch.Tensor] = {}

    def look(self, stream: Looked) -> None:
        for frame in sorted(stream.latents)[-self._recent :]:
            with contextlib.suppress(ConfigError):  # given, and not stored yet
                self._keys[frame] = stream.mean_keys(frame)

    def __call__(self, block: range, candidates: Sequence[int], count: int) -> list[int]:
        newest = [f for f in range(block.start - len(block), block.start) if f in self._keys]
        known = [frame for frame in candidates if frame in self._keys]
        if not newest or not known:
            return list(candidates[-count:])
        query = torch.stack([self._keys[frame] for frame in newest]).mean(0).flatten().double()
        keys = torch.stack([self._keys[frame] for frame in known]).flatten(1).double()
        scores = (keys * query).sum(1).tolist()
        best = sorted(zip(scores, known, strict=True))[-count:]
        return sorted(frame for _, frame in best)
