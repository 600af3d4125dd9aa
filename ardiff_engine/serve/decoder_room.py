# SPDX-License-Identifier: Apache-2.0
"""Memory for what decoders keep between frames: promised to a stream when it is admitted, until it ends.

The decoders live in the other process, where the engine does not see them. Streams that wait for pages count
too, as nothing asks again when they begin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ardiff_engine.available_memory import available_memory
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine import Stream
from ardiff_engine.errors import ConfigError, OutOfMemoryError
from ardiff_engine.models.spec import ModelSpec, Size


@dataclass(slots=True, eq=False)
class _Promise:
    """stream: None while it is being submitted."""

    size: int
    stream: Stream | None = None

    @property
    def over(self) -> bool:
        return self.stream is not None and self.stream.done


class DecoderRoom:
    """Any thread may call it."""

    def __init__(self, codec: Codec, spec: ModelSpec, total: int) -> None:
        """total: bytes for all decoders."""
        self._codec, self._spec, self._total = codec, spec, total
        self._promises: list[_Promise] = []
        self._lock = threading.Lock()

    def opened(self, size: Size | None, submit: Callable[[], Stream]) -> Stream:
        """A stream with frames of that size. ConfigError: its decoder is larger than all the room.
        OutOfMemoryError: there is no room beside the others now."""
        own = size or self._spec.size or self._spec.patch
        need = self._codec.bytes_per_stream(own)
        if not need:
            return submit()
        promise = _Promise(need)
        with self._lock:
            self._promises = [other for other in self._promises if not other.over]
            left = self._total - sum(other.size for other in self._promises)
            if need > self._total:
                raise ConfigError(f"the decoder of such a video keeps {_mib(need)}, got {_mib(self._total)}")
            if need > left:
                others = f"{_mib(left)} of {_mib(self._total)} are left beside {len(self._promises)} others"
                raise OutOfMemoryError(f"the decoder of such a video keeps {_mib(need)}, and {others}")
            self._promises.append(promise)
        try:
            promise.stream = submit()
        except BaseException:
            with self._lock:
                self._promises = [other for other in self._promises if other is not promise]
            raise
        return promise.stream


def room_for(codec: Codec, spec: ModelSpec) -> DecoderRoom:
    """Of what is free now on the codec's device, less a second copy of its weights in the other process."""
    weights = list(codec.parameters()) if isinstance(codec, torch.nn.Module) else []
    copy = sum(weight.numel() * weight.element_size() for weight in weights)
    device = weights[0].device if weights else torch.device("cpu")
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    return DecoderRoom(codec, spec, max(0, free - copy))


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
