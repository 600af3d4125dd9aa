# SPDX-License-Identifier: Apache-2.0
"""Runs an engine and decodes what it makes, in a second thread: while pictures of the finished frames are
made, the passes of the next ones run."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
from tqdm.auto import tqdm

from ardiff_engine.codec.protocol import Decoder
from ardiff_engine.codec.worker import DecodeWorker
from ardiff_engine.engine import Engine, LatentFrame, Stream
from ardiff_engine.pipeline.output import VideoFrame

MOST_UNREAD = 8
"""Pieces of video that may be decoded, or wait for it, before the engine does."""


class Decodes(Protocol):
    """A codec whose pictures are uint8 [m, H, W, 3] on the CPU."""

    def decoder(self, given: torch.Tensor | None = None) -> Decoder:
        """For a video that goes on after the latents `given`; see `codec.protocol.Codec`."""


def batch_pictures(
    engine: Engine, streams: Sequence[Stream], codec: Decodes, prefix: torch.Tensor | None, bar: tqdm
) -> list[torch.Tensor]:
    """Run all streams to their ends: the new frames of each, uint8 [frames, H, W, 3].

    prefix: latents that all of them continue. bar: shows the passes of the first, and its frames.
    Raises the error of the first stream that fails. Then, and by any other error, all of them end.
    """
    decoders = [codec.decoder(prefix) for _ in streams]
    pictures: list[list[torch.Tensor]] = [[] for _ in streams]
    shown = 0

    def decode(piece: tuple[int, torch.Tensor]) -> tuple[int, torch.Tensor]:
        return piece[0], decoders[piece[0]].push(piece[1])

    with DecodeWorker(decode, MOST_UNREAD, engine.device) as worker, cancelled_at_last(streams):

        def keep() -> None:
            nonlocal shown
            index, decoded = worker.take()
            pictures[index].append(decoded)
            if index == 0:
                shown += len(decoded)
                bar.set_postfix(frames=shown, refresh=False)

        while not all(stream.done for stream in streams):
            engine.step()
            bar.update(streams[0].ticks_done - bar.n)
            for index, stream in enumerate(streams):
                stream.raise_if_failed()
                if stream.frames_ready:
                    worker.submit((index, torch.stack([frame.latent for frame in stream.take_ready()])))
            while worker.ready:
                keep()
        while worker.unread:
            keep()
    return [torch.cat(pieces) for pieces in pictures]


@contextlib.contextmanager
def cancelled_at_last(streams: Sequence[Stream]) -> Iterator[None]:
    """Whatever ends the block, the streams hold no pages of the engine afterwards."""
    try:
        yield
    finally:
        for stream in streams:
            stream.cancel()


def stream_pictures(
    engine: Engine,
    stream: Stream,
    codec: Decodes,
    prefix: torch.Tensor | None,
    first: int = 0,
    ahead: int = MOST_UNREAD,
) -> Iterator[VideoFrame]:
    """The frames of one stream as they become clean. Closing the iterator cancels the stream.

    first: number of the first frame that comes, where those before are given. ahead: pieces that may be
    decoded, or wait for it, before the engine does.
    """
    decoder, started = codec.decoder(prefix), time.perf_counter()
    latents: deque[LatentFrame] = deque()
    numbers = count(first)

    def decode(frame: LatentFrame) -> list[VideoFrame]:
        # One at a time, also where several are there: a batch would round differently.
        images, seconds = decoder.push(frame.latent[None]), time.perf_counter() - started
        seed = stream.request.seed
        return [VideoFrame(next(numbers), image, frame.latent, seconds, seed) for image in images]

    with DecodeWorker(decode, ahead, engine.device) as worker, cancelled_at_last([stream]):
        while True:
            latents.extend(stream.take_ready())
            while latents and worker.unread < ahead:
                worker.submit(latents.popleft())
            if worker.ready or (worker.unread and (latents or stream.done)):
                yield from worker.take()
            elif stream.done:
                stream.raise_if_failed()
                return
            else:
                engine.step()
