# SPDX-License-Identifier: Apache-2.0
"""What a noise source answers, and the plain one: noise that is counted by the seed of the request."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from ardiff_engine.purposes import Purpose


class Draws(Protocol):
    """The counter-based noise of one request (its seed and noise_stream)."""

    def __call__(self, frame: int, purpose: Purpose = Purpose.INITIAL, step: int = 0) -> torch.Tensor:
        """Standard normal float32, of the shape of a latent frame. frame: counted from the first one that is
        generated, as everywhere in a source."""


@runtime_checkable
class NoiseSource(Protocol):
    """Where the noise of a video comes from. It may hold tensors, but answers the same whenever it is asked:
    streams fork, go back and are resumed.

    Frames are counted from the first one that is generated, and have the shape of a latent frame in the
    layout of the model: [channels, rows, columns], or [tokens, channels].
    """

    gives_updates: bool
    """Whether `update` differs from the counted noise, which is drawn inside the solver's kernel."""

    def check(self, frames: int | None, shape: tuple[int, ...], levels: int) -> None:
        """Raise a typed error unless there is noise for this many frames (None: endless) of this shape, whose
        updates at levels 0 .. levels - 1 may draw some."""

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        """float32: what a frame starts from."""

    def update(self, frame: int, level: int, own: Draws) -> torch.Tensor:
        """float32: eps of the update of a frame that stands at this level."""


class Iid:
    """Every frame and every update has noise of its own. What other sources fall back on."""

    gives_updates = False

    def check(self, frames: int | None, shape: tuple[int, ...], levels: int) -> None:
        return

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        return own(frame)

    def update(self, frame: int, level: int, own: Draws) -> torch.Tensor:
        return own(frame, Purpose.STEP, level)
