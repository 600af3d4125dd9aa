# SPDX-License-Identifier: Apache-2.0
"""Starting noise that follows an optical flow (Go-with-the-Flow)."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.noise.source import Draws, Iid
from ardiff_engine.noise.warp import Warp, blended, warp_noise
from ardiff_engine.purposes import Purpose


class Warped(Iid):
    """The noise of a frame is that of the frame before, moved along the flow between them.

    flow [F - 1, 2, rows, columns]: from frame f to f + 1, to the right and down, in latent pixels; with one
    row and one column the whole picture moves alike, whatever its size. fresh: how much of independent noise
    is blended in, 0 .. 1. Frames without a flow start from counted noise.
    """

    def __init__(self, flow: torch.Tensor, fresh: float = 0.0) -> None:
        self._flow = torch.as_tensor(flow).detach().to(torch.float32, copy=True)
        if self._flow.ndim != 4 or self._flow.shape[1] != 2:
            raise TensorError(
                f"noise.Warped: flow has shape {list(self._flow.shape)}, expected [F - 1, 2, rows, columns]"
            )
        if not 0.0 <= fresh <= 1.0:
            raise ConfigError(f"noise.Warped fresh={fresh!r}: give a number from 0 to 1")
        self._fresh = float(fresh)

    def check(self, frames: int | None, shape: tuple[int, ...], levels: int) -> None:
        if len(shape) != 3 or self._flow.shape[2:] not in ((1, 1), shape[1:]):
            raise TensorError(
                f"noise.Warped: a flow of {list(self._flow.shape[2:])} for latent frames of {list(shape)}; "
                "they must be [channels, rows, columns] of the same rows and columns"
            )

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        if frame > len(self._flow):
            return own(frame)
        state = Warp.start(own(0))
        for number in range(frame):
            extra = [own(number + 1, Purpose.WARP, half) for half in range(2)]
            flow = self._flow[number].to(extra[0].device).expand(2, *extra[0].shape[1:])
            state = warp_noise(state, flow, torch.cat(extra, dim=2))
        return blended(state.noise, own(frame), self._fresh) if self._fresh else state.noise
