# SPDX-License-Identifier: Apache-2.0
"""The noise that the frames of one stream start from: given latents, a generator, or the seed's."""

from __future__ import annotations

import torch

from ardiff_engine.device import upload
from ardiff_engine.diffusion.noise import initial_noise
from ardiff_engine.engine.request import Request
from ardiff_engine.models.spec import ModelSpec

# What is drawn at a time, at most: a draw of a small frame is nearly all call, and what is not used is not
# missed.
FRAMES_DRAWN = 16
NUMBERS_DRAWN = 16384


class StartingNoise:
    """given: latents [frames, tokens, channels] for the first generated frames, None: none."""

    def __init__(self, request: Request, spec: ModelSpec, device: torch.device) -> None:
        self._request = request
        self._shape = (spec.tokens_per_frame, spec.channels)
        self._device = device
        self._drawn: dict[int, torch.Tensor] = {}
        # Copied now: the caller may reuse the tensor while the stream still has frames to start from it.
        self.given: torch.Tensor | None = None
        if request.latents is not None:
            self.given = request.latents.detach().to(device, torch.float32, copy=True)

    def of(self, frame: int) -> torch.Tensor:
        """float32 [tokens, channels]. From a generator it is another one at every call."""
        request = self._request
        index = frame - request.prefix_frames
        # Frames that an extension adds have no given noise.
        if self.given is not None and index < len(self.given):
            return self.given[index]
        if request.generator is not None:
            drawn = torch.randn(
                self._shape,
                generator=request.generator,
                dtype=torch.float32,
                device=request.generator.device,
            )
            return upload(drawn, self._device)
        if frame not in self._drawn:
            numbers = self._shape[0] * self._shape[1]
            frames = range(frame, frame + max(1, min(FRAMES_DRAWN, NUMBERS_DRAWN // numbers)))
            noise = initial_noise(
                request.seed, request.noise_stream, frames, self._shape, device=self._device
            )
            self._drawn = dict(zip(frames, noise.unbind(0), strict=True))
        return self._drawn.pop(frame)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._drawn.clear()
        self.given = None
