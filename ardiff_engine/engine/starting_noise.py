# SPDX-License-Identifier: Apache-2.0
"""The noise of one stream: from a source of the request, given latents, a generator, or the seed."""

from __future__ import annotations

from math import prod

import torch

from ardiff_engine.device import upload
from ardiff_engine.diffusion.guidance import noise_weights
from ardiff_engine.diffusion.noise import initial_noise, noise_keys
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import Tracks, drawn_levels, tracks_of
from ardiff_engine.models.agreement import check_layout
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.noise import Given, NoiseSource
from ardiff_engine.ops.philox_normal import philox_normal
from ardiff_engine.purposes import Purpose

# What is drawn at a time, at most: a draw of a small frame is nearly all call, and what is not used is not
# missed.
FRAMES_DRAWN = 64
NUMBERS_DRAWN = 16384


class StartingNoise:
    """Drawn in the layout that the model gives to frames, returned as tokens.

    source: None: counted, or from the generator. It is shared by forks.
    """

    def __init__(self, request: Request, model: VideoModel, source: NoiseSource | None = None) -> None:
        check_layout(model, request.size)
        self._request = request
        self._model = model
        self._shape = model.spec.frame_shape(request.size)
        self._device = model.device
        self._drawn: dict[int, torch.Tensor] = {}
        self.source = source or request.noise
        if self.source is None and request.latents is not None:
            self.source = Given(request.latents.to(self._device))

    @property
    def gives_updates(self) -> bool:
        """Whether `update` differs from what the solver draws by its keys."""
        return self.source is not None and self.source.gives_updates

    def of(self, frame: int) -> torch.Tensor:
        """float32 [tokens, channels]. From a generator it is another one at every call."""
        request = self._request
        if self.source is not None:
            return self._tokens(self.source.initial(frame - request.prefix_frames, self._counted))
        if request.generator is not None:
            drawn = torch.randn(
                self._shape,
                generator=request.generator,
                dtype=torch.float32,
                device=request.generator.device,
            )
            return self._tokens(drawn)
        if frame not in self._drawn:
            numbers = prod(self._shape)
            frames = range(frame, frame + max(1, min(FRAMES_DRAWN, NUMBERS_DRAWN // numbers)))
            noise = initial_noise(
                request.seed, request.noise_stream, frames, self._shape, device=self._device
            )
            self._drawn = dict(zip(frames, self._model.to_tokens(noise).unbind(0), strict=True))
        return self._drawn.pop(frame)

    def update(self, frame: int, level: int) -> torch.Tensor:
        """float32 [tokens, channels]: eps of the update of a frame at this level."""
        assert self.source is not None, "gives_updates"
        return self._tokens(self.source.update(frame - self._request.prefix_frames, level, self._counted))

    def over(self, frame: int, tick: int) -> torch.Tensor:
        """float32 [tokens, channels]: noise on a clean frame that a branch sees noised in that tick."""
        return self._tokens(self._counted(frame - self._request.prefix_frames, Purpose.HISTORY, tick))

    def clear(self) -> None:
        """Let go of all tensors."""
        self._drawn.clear()
        self.source = None

    def _counted(self, frame: int, purpose: Purpose = Purpose.INITIAL, step: int = 0) -> torch.Tensor:
        request = self._request
        keys = noise_keys(
            request.seed, request.noise_stream, frame + request.prefix_frames, int(purpose), step
        )
        return philox_normal(upload(keys, self._device), prod(self._shape)).reshape(self._shape)

    def _tokens(self, drawn: torch.Tensor) -> torch.Tensor:
        return self._model.to_tokens(upload(drawn.to(torch.float32), self._device))


def check_noise(request: Request, spec: ModelSpec, solver: Tracks) -> None:
    """A typed error where `request.noise` is not of this video, or a branch sees clean frames at a level that
    the solver does not have."""
    levels = {branch.view.level for branch in request.guidance if branch.view is not None} - {None}
    for own in tracks_of(solver):
        for level in levels:
            noise_weights(own, level or 0)
    if request.noise is not None:
        frames = None if request.num_frames is None else request.num_frames - request.prefix_frames
        request.noise.check(frames, spec.frame_shape(request.size), drawn_levels(solver))


def given_frames(request: Request, model: VideoModel) -> tuple[torch.Tensor, ...]:
    """The latents of `request.prefix` as solver and engine have them. Copied: the caller may reuse his."""
    if request.prefix is None:
        return ()
    prefix = request.prefix.detach().to(model.device, torch.float32, copy=True)
    return model.to_tokens(prefix).unbind(0)
