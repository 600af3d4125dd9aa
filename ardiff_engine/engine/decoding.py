# SPDX-License-Identifier: Apache-2.0
"""The pictures of a stream: an engine with a codec decodes clean frames as they come.

Each frame is decoded in a call of its own, in the step that delivers it: how many become clean together
depends on what else runs, and the pictures must not. A decoder is never moved back: after a rollback another
one is made from the clean latents before it. That costs the decoding of as many of them as the codec's
`history` says, once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import torch

from ardiff_engine.available_memory import available_memory
from ardiff_engine.codec.protocol import Codec, Decoder
from ardiff_engine.errors import ConfigError, ForgottenError, OutOfMemoryError
from ardiff_engine.models.pictures import to_uint8
from ardiff_engine.models.protocol import VideoModel

Clean = list[tuple[int, torch.Tensor]]
"""Frames that became clean, in order: number and latents [tokens, channels]."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture of a stream. index: from 0, in the order of the video, those of given frames not counted.
    frame: the latent frame that completed it. pixels: as the codec makes them; black: what it makes of that.
    """

    index: int
    frame: int
    pixels: torch.Tensor
    black: float

    @property
    def image(self) -> torch.Tensor:
        """uint8 [H, W, 3] on the CPU. NumericalError: pixels that are NaN or infinite."""
        if self.pixels.dtype == torch.uint8:
            return self.pixels
        return to_uint8(((self.pixels - self.black) / (1 - self.black))[None])[0]


class StreamDecoder:
    """Of one stream. promised: bytes of state that it may come to keep."""

    def __init__(
        self,
        codec: Codec,
        promised: int,
        in_layout: Callable[[torch.Tensor], torch.Tensor],
        given: Iterable[torch.Tensor],
        device: torch.device,
    ) -> None:
        """in_layout: latents [n, tokens, channels] as the codec takes them. given: frames that the video
        continues. device: of the codec."""
        self.promised = promised
        self._codec = codec
        self._device = device
        self._in_layout = in_layout
        # Clean frames that another decoder would be made from. Those of finite streams are kept anyway.
        self._latents = dict(enumerate(given))
        self._next = len(self._latents)
        self._pictures = 0
        self._first_pictures: dict[int, int] = {}
        self._decoder: Decoder | None = None

    @property
    def missing(self) -> int:
        """Bytes that were promised and are not taken yet."""
        held = 0 if self._decoder is None else getattr(self._decoder, "nbytes", self.promised)
        return max(0, self.promised - held)

    def check_memory(self, others: Iterable[StreamDecoder | None]) -> None:
        """OutOfMemoryError unless there is room for another such state."""
        check_memory(self.promised, others, self._device)

    def decode(self, clean: Clean, seen: Container[int] | None) -> list[tuple[Picture, ...]]:
        """The pictures of each frame. seen: frames that the stream can still go back behind; None: all.

        Where it raises, nothing has changed, and it may be called again.
        """
        pixels: list[torch.Tensor] = []
        try:
            if self._decoder is None:
                self._decoder = self._made_again()
            for _, latent in clean:
                pixels.append(self._decoder.push(self._in_layout(latent[None])))
        except BaseException:
            # It may have gone on by half.
            self._drop()
            raise
        black = getattr(self._codec, "black", 0.0)
        made = []
        for (frame, latent), own in zip(clean, pixels, strict=True):
            self._first_pictures[frame], self._latents[frame] = self._pictures, latent
            made.append(
                tuple(Picture(self._pictures + i, frame, pixel, black) for i, pixel in enumerate(own))
            )
            self._pictures += len(own)
        self._next = clean[-1][0] + 1
        if seen is not None:
            self._forget(seen)
        return made

    def check_back(self, frame: int) -> None:
        """ForgottenError unless `rollback(frame)` is possible."""
        needed = range(self._history(frame), frame)
        if frame < self._next and not all(earlier in self._latents for earlier in needed):
            raise ForgottenError(
                f"rollback to frame {frame}: its pictures need the latents of frames {needed.start} to "
                f"{needed.stop - 1}, and an endless stream keeps only the last ones. Go back less far."
            )

    def rollback(self, frame: int) -> None:
        """`frame` and all later ones come again."""
        if frame >= self._next:
            return
        self._pictures, self._next = self._first_pictures[frame], frame
        for later in [f for f in self._first_pictures if f >= frame]:
            del self._first_pictures[later], self._latents[later]
        self._drop()

    def fork(self) -> StreamDecoder:
        """For a stream that goes on from here. The two share their state until one of them goes on."""
        other = StreamDecoder(self._codec, self.promised, self._in_layout, (), self._device)
        other._latents, other._next, other._pictures = dict(self._latents), self._next, self._pictures
        other._first_pictures = dict(self._first_pictures)
        other._decoder = self._copy(None)
        return other

    def moved(self, device: str | None) -> Decoder | None:
        """A copy of the state on another device, for `replace`; None: where the codec is."""
        return self._copy(self._device if device is None else device)

    def replace(self, decoder: Decoder | None) -> None:
        self._drop()
        self._decoder = decoder

    def close(self) -> None:
        """The stream has ended."""
        self._drop()
        self._latents.clear()

    def _made_again(self) -> Decoder:
        given = [self._latents[frame] for frame in range(self._history(self._next), self._next)]
        return self._codec.decoder(self._in_layout(torch.stack(given)) if given else None)

    def _forget(self, seen: Container[int]) -> None:
        oldest = self._next
        while oldest - 1 in seen:
            oldest -= 1
        first = self._history(oldest)
        for frame in [f for f in self._latents if f < first]:
            del self._latents[frame]
            self._first_pictures.pop(frame, None)

    def _history(self, frame: int) -> int:
        history: Callable[[int], int] | None = getattr(self._codec, "history", None)
        return 0 if history is None else history(frame)

    def _copy(self, device: torch.device | str | None) -> Decoder | None:
        """None: it is made again when it is needed."""
        copy = getattr(self._decoder, "copy", None)
        return None if copy is None else copy(device)

    def _drop(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def check_codec(codec: Codec | None, model: VideoModel) -> Codec | None:
    """ConfigError: no codec, or one of other latents than the model's."""
    if codec is None:
        return None
    if isinstance(codec, type) or not isinstance(codec, Codec):
        raise ConfigError(f"codec: got {codec!r:.80}, expected an autoencoder such as codec.WanVAE, or None.")
    spec, channels = model.spec, getattr(codec, "channels", None)
    if spec.patch is not None and channels is not None and channels != spec.frame_shape(None)[0]:
        raise ConfigError(
            f"codec: its latents have {channels} channels, those of the network {spec.frame_shape(None)[0]}. "
            "Take the autoencoder that belongs to it."
        )
    return codec


def decoder_bytes(codec: Codec | None, model: VideoModel, size: tuple[int, int] | None) -> int:
    """Of the state that one stream keeps whose request has that size."""
    return 0 if codec is None else codec.bytes_per_stream(size or model.spec.size or model.spec.patch)


def decoder_for(
    codec: Codec | None,
    model: VideoModel,
    size: tuple[int, int] | None,
    given: Iterable[torch.Tensor],
    others: Iterable[StreamDecoder | None],
) -> StreamDecoder | None:
    """Of a new stream; given: frames that it continues. OutOfMemoryError: no room beside the others."""
    if codec is None:
        return None
    promised = decoder_bytes(codec, model, size)
    parameters = codec.parameters() if isinstance(codec, torch.nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), model.device)
    check_memory(promised, others, device)
    return StreamDecoder(codec, promised, lambda tokens: model.from_tokens(tokens, size), given, device)


def check_memory(promised: int, others: Iterable[StreamDecoder | None], device: torch.device) -> None:
    """OutOfMemoryError unless so much state has room on the device, beside what was promised to others."""
    if not promised:
        return
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
    else:
        free = available_memory()
    left = free - sum(other.missing for other in others if other is not None)
    if promised > left:
        raise OutOfMemoryError(
            f"a decoder of this stream keeps {promised / 2**20:.0f} MiB, and {max(0, left) / 2**20:.0f} MiB "
            "are left: wait until a stream ends, or take a smaller size, a narrower dtype or another codec"
        )
