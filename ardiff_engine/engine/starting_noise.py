# SPDX-License-Identifier: Apache-2.0
"""The noise that the frames of one stream start from: given latents, a generator, or the seed's."""

from __future__ import annotations

from math import prod

import torch

from ardiff_engine.device import upload
from ardiff_engine.diffusion.noise import initial_noise
from ardiff_engine.engine.request import Request
from ardiff_engine.models.protocol import VideoModel

# What is drawn at a time, at most: a draw of a small frame is nearly all call, and what is not used is not
# missed.
FRAMES_DRAWN = 16
NUMBERS_DRAWN = 16384


class StartingNoise:
    """Drawn in the layout that the model gives to frames, returned as tokens.

    given: latents [frames, tokens, channels] for the first generated frames, None: none.
    """

    def __init__(self, request: Request, model: VideoModel) -> None:
        self._request = request
        self._model = model
        self._shape = model.spec.frame_shape(request.size)
        self._device = model.device
        self._drawn: dict[int, torch.Tensor] = {}
        # Copied now: the caller may reuse the tensor while the stream still has frames to start from it.
        self.given: torch.Tensor | None = None
        if request.latents is not None:
            self.given = model.to_tokens(request.latents.detach().to(self._device, torch.float32, copy=True))

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
            return self._model.to_tokens(upload(drawn, self._device))
        if frame not in self._drawn:
            numbers = prod(self._shape)
            frames = range(frame, frame + max(1, min(FRAMES_DRAWN, NUMBERS_DRAWN // numbers)))
            noise = initial_noise(
                request.seed, request.noise_stream, frames, self._shape, device=self._device
            )
            self._drawn = dict(zip(frames, self._model.to_tokens(noise).unbind(0), strict=True))
        return self._drawn.pop(frame)

    def clear(self) -> None:
        """Let go of all tensors."""
        self._drawn.clear()
        self.given = None
