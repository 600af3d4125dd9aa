# SPDX-License-Identifier: Apache-2.0
"""The engine that a pipeline keeps from call to call: weights are packed and pages are allocated once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import nn

from ardiff_engine.device import free_memory
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.engine.admission import admit
from ardiff_engine.engine.memory_plan import bytes_per_page
from ardiff_engine.engine.schedules import tracks_of
from ardiff_engine.errors import OutOfMemoryError, OutOfPagesError
from ardiff_engine.memory import rows_of_pages
from ardiff_engine.models.protocol import VideoModel

GIB = 1 << 30


class KeptEngine:
    """As many pages as were ever needed at once. It is built anew for more of them, for another model, and
    after the weights have changed; streams of an engine that was replaced run on in it.

    Weights that are changed through `.data` look unchanged: call `forget` then.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._state: object = None
        self._lock = threading.Lock()

    def forget(self) -> None:
        """The next request gets a new engine."""
        with self._lock:
            self._engine = None

    def submit(
        self, model: VideoModel, weights: nn.Module, requests: Sequence[Request], *, beside: int = 0
    ) -> tuple[Engine, list[Stream]]:
        """Admit all of them, or raise a typed error and admit none.

        weights: the module that the model computes with. requests: each with solver and memory of its own.
        beside: bytes that they take beside the pages.
        """
        pages = sum(pages_of(model, request) for request in requests)
        streams: list[Stream] = []
        with self._lock:
            engine = self._fit(model, weights, pages, requests[0], beside)
            try:
                for request in requests:
                    streams.append(engine.submit(request))
            except BaseException:
                for stream in streams:
                    stream.cancel()
                raise
        return engine, streams

    def _fit(self, model: VideoModel, weights: nn.Module, pages: int, first: Request, beside: int) -> Engine:
        state = (id(model), fingerprint(weights))
        if self._engine is not None and state == self._state:
            stats = self._engine.stats()
            if stats.pages_promised + pages <= stats.pages_total:
                check_room(model, 0, beside)
                return self._engine
            pages = max(pages + stats.pages_promised, stats.pages_total)
        self._engine = None  # before another one takes memory
        check_room(model, pages, beside)
        assert first.solver is not None
        self._engine = Engine(model, solver=first.solver, memory=first.memory, max_pages=pages)
        self._state = (id(model), fingerprint(weights))  # an engine lays the weights out anew
        return self._engine


def check_room(model: VideoModel, pages: int, beside: int) -> None:
    """OutOfPagesError, with the numbers, where the pages do not fit into the memory that is free;
    OutOfMemoryError where they do, but not with the bytes `beside` them."""
    needed = pages * bytes_per_page(model.spec, rows_of_pages(model.spec), model.dtype.itemsize)
    free = free_memory(model.device)
    if needed > free:
        raise OutOfPagesError(
            f"pages: this takes {pages} pages, {needed / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on "
            f"{model.device}. Ask for fewer, shorter or smaller videos, or a memory that sees less."
        )
    if needed + beside > free:
        raise OutOfMemoryError(
            f"memory: this takes {needed / GIB:.2f} GiB of pages and {beside / GIB:.2f} GiB to compute and "
            f"decode, and {free / GIB:.2f} GiB are free on {model.device}. Ask for fewer or smaller videos, "
            "or load with tile=…."
        )


def pages_of(model: VideoModel, request: Request) -> int:
    """The most that a video can ever need; a typed error if it cannot be served."""
    assert request.solver is not None and request.memory is not None
    steps = tuple(own.num_steps for own in tracks_of(request.solver))
    return admit(request, model.spec, request.memory, steps).need.most


def fingerprint(weights: nn.Module) -> object:
    """Changes with every weight that is written, moved or replaced, and with every layer that is replaced or
    hooked."""
    tensors = (*weights.parameters(), *weights.buffers())
    return (
        tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in tensors),
        tuple(
            (id(part), len(part._forward_hooks), len(part._forward_pre_hooks)) for part in weights.modules()
        ),
        getattr(weights, "as_modules", None),
    )
