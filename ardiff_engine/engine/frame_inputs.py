# SPDX-License-Identifier: Apache-2.0
"""What a network takes for every frame beside its latents (`ModelSpec.frame_inputs`): actions, cameras,
channels of given pictures. From the user, who gives all or says them frame by frame, to the cells of a pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ardiff_engine.engine.request import Request
from ardiff_engine.errors import ConfigError, NumericalError, TensorError
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.spec import Size

Source = torch.Tensor | Callable[[int], Any]
"""Of one input: [F, ...], or what frame -> [...] says."""


class FrameInputs:
    """Of one stream. A frame's are asked for when it is first fed, and kept while it may be fed again. Asked
    for again, to be stored anew, it has those that it was made with."""

    def __init__(
        self, model: VideoModel, size: Size | None, given: Mapping[str, Any] | None, frames: int | None
    ) -> None:
        """given: by name; frames: of the video.

        ConfigError: names that the network does not have, or lacks. TensorError, NumericalError: another
        shape, fewer frames than the video has, numbers that are not finite.
        """
        self._model, self._size = model, size
        self._shapes = {own.name: own.shape(model.spec, size) for own in model.spec.frame_inputs}
        names, wanted = set(given or ()), set(self._shapes)
        if names != wanted:
            raise ConfigError(
                f"frame_inputs: got {sorted(names)}, expected {sorted(wanted)}, the inputs that this network "
                "takes for every frame"
            )
        sources: dict[str, Source] = {}
        for name, source in (given or {}).items():
            sources[name] = source if callable(source) else self._tensor(name, source)
        # (first frame, sources that hold from it on), in order.
        self._spans: tuple[tuple[int, dict[str, Source]], ...] = ((0, sources),)
        self.check_length(frames)
        self._held: dict[int, tuple[torch.Tensor, ...]] = {}

    @classmethod
    def of_request(cls, request: Request, model: VideoModel) -> FrameInputs:
        return cls(model, request.size, request.frame_inputs, request.num_frames)

    def copy(self) -> FrameInputs:
        other = FrameInputs.__new__(FrameInputs)
        other.__dict__.update(self.__dict__)
        other._held = dict(self._held)
        return other

    def moved(self, device: torch.device | str) -> FrameInputs:
        """A copy whose tensors are on that device."""
        other = self.copy()
        other._spans = tuple([(first, _moved(sources, device)) for first, sources in self._spans])
        other._held = {frame: tuple([row.to(device) for row in rows]) for frame, rows in self._held.items()}
        return other

    def replaced(self, given: Mapping[str, Any], frames: int | None, first: int) -> FrameInputs:
        """With other sources for some of them, which hold from frame `first` on."""
        other = FrameInputs(self._model, self._size, self._last | dict(given), frames)
        other._spans = (*[span for span in self._spans if span[0] < first], (first, other._last))
        other._held = {frame: rows for frame, rows in self._held.items() if frame < first}
        return other

    def check_length(self, frames: int | None) -> None:
        """Raise TensorError if a tensor ends before a video of so many frames (None: endless) does."""
        for name, source in self._last.items():
            if isinstance(source, torch.Tensor) and (frames is None or len(source) < frames):
                length = "an endless video" if frames is None else f"{frames} frames"
                raise TensorError(
                    f"frame_inputs[{name!r}]: got {len(source)} frames for {length}; give one for each, "
                    "or a function of the frame's number"
                )

    def fetch(self, frames: Iterable[int]) -> None:
        """Have the rows of these frames. What a user's function raises comes through."""
        for frame in frames if self._shapes else ():
            if frame not in self._held:
                self._held[frame] = tuple([self._rows(name, frame) for name in self._shapes])

    def of(self, frame: int) -> tuple[torch.Tensor, ...]:
        """float32 [tokens, channels] of each input, in the order of the spec."""
        return self._held[frame]

    def drop(self, frame: int) -> None:
        self._held.pop(frame, None)

    def drop_from(self, frame: int) -> None:
        """Ask anew for `frame` and all later ones."""
        self._held = {f: rows for f, rows in self._held.items() if f < frame}

    def go_back(self, frame: int) -> None:
        """`frame` and all later ones are made again: by what holds now."""
        if self._spans[-1][0] > frame:
            kept = [span for span in self._spans if span[0] < frame]
            self._spans = (*kept, (frame, self._last))

    # --- private

    @property
    def _last(self) -> dict[str, Source]:
        return self._spans[-1][1]

    def _rows(self, name: str, frame: int) -> torch.Tensor:
        source = self._spans[bisect_right(self._spans, frame, key=lambda span: span[0]) - 1][1][name]
        value = (
            source[frame] if isinstance(source, torch.Tensor) else self._tensor(name, source(frame), frame)
        )
        if len(self._shapes[name]) == 1:
            return value.expand(self._model.spec.tokens(self._size), -1)
        return self._model.to_tokens(value)

    def _tensor(self, name: str, value: Any, frame: int | None = None) -> torch.Tensor:
        """A copy on the device of the model: the caller may reuse the tensor. frame: of one alone."""
        shape, what = self._shapes[name], f"frame_inputs[{name!r}]"
        try:
            tensor = torch.as_tensor(value).detach().to(self._model.device, torch.float32, copy=True)
        except (TypeError, ValueError, RuntimeError):
            raise TensorError(f"{what}: got {type(value).__name__}, expected numbers") from None
        own = tuple(tensor.shape if frame is not None else tensor.shape[1:])
        if own != shape or tensor.ndim != len(shape) + (frame is None):
            expected = ", ".join(map(str, shape if frame is not None else ("frames", *shape)))
            raise TensorError(f"{what}: got {list(tensor.shape)}, expected [{expected}]")
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"{what}: got NaN or infinity, expected finite numbers")
        return tensor


def _moved(sources: dict[str, Source], device: torch.device | str) -> dict[str, Source]:
    return {
        name: source.to(device) if isinstance(source, torch.Tensor) else source
        for name, source in sources.items()
    }
