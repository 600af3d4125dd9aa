# SPDX-License-Identifier: Apache-2.0
"""Noise that the caller has drawn: to continue another program's random numbers, or to start from data."""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError, NumericalError, TensorError
from ardiff_engine.noise.source import Draws, Iid


class Given(Iid):
    """initial [F, *frame] for the F generated frames, steps [F, S, *frame] for their updates at levels 0 ..
    S - 1; either may be None, and is then counted. So it is for frames that are added by an extension.

    A frame is [channels, rows, columns] or [tokens, channels], as the latents of the model are. Both tensors
    are copied. TensorError, NumericalError: no floating point, or numbers that are not finite.
    """

    def __init__(self, initial: torch.Tensor | None = None, steps: torch.Tensor | None = None) -> None:
        self._initial, self._steps = _kept("initial", initial), _kept("steps", steps)
        self.gives_updates = steps is not None

    def check(self, frames: int | None, shape: tuple[int, ...], levels: int) -> None:
        if frames is None:
            raise ConfigError("noise.Given for an endless video: give num_frames, or use another source.")
        if self._initial is not None and self._initial.shape != (frames, *shape):
            raise TensorError(
                f"noise.Given: initial has shape {list(self._initial.shape)}, expected {[frames, *shape]}"
            )
        steps = self._steps
        if steps is None:
            return
        if steps.ndim < 2 or steps.shape[0] != frames or steps.shape[2:] != shape or steps.shape[1] < levels:
            raise TensorError(
                f"noise.Given: steps has shape {list(steps.shape)}, expected {[frames, levels, *shape]}: "
                "one entry for each level whose update adds noise"
            )

    def initial(self, frame: int, own: Draws) -> torch.Tensor:
        if self._initial is None or frame >= len(self._initial):
            return own(frame)
        return self._initial[frame]

    def update(self, frame: int, level: int, own: Draws) -> torch.Tensor:
        if self._steps is None or frame >= len(self._steps):
            return super().update(frame, level, own)
        # A level that draws none may have no entry.
        steps = self._steps[frame]
        return steps[level] if level < len(steps) else torch.zeros_like(steps[0])


def _kept(name: str, value: torch.Tensor | None) -> torch.Tensor | None:
    """A copy: the caller may reuse the tensor while streams still have frames to start from it."""
    if value is None:
        return None
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point() or tensor.ndim < 2:
        raise TensorError(f"noise.Given: {name} must be floating point [F, ...], got {tensor.dtype}")
    kept = tensor.detach().to(torch.float32, copy=True)
    if not bool(torch.isfinite(kept).all()):
        raise NumericalError(f"noise.Given: {name} has NaN or infinity; check the input.")
    return kept
