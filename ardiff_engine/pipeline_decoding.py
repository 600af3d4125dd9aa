# SPDX-License-Identifier: Apache-2.0
"""Runs an engine and decodes what it makes, in a second thread: while pictures of the finished frames are
made, the passes of the next ones run."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm

from ardiff_engine.codec.worker import DecodeWorker
from ardiff_engine.engine import Engine, LatentFrame, Stream
from ardiff_engine.models.pictures import PictureCodec
from ardiff_engine.pipeline_output import VideoFrame

MOST_UNREAD = 8
"""Pieces of video that may be decoded, or wait for it, before the engine does."""


def batch_pictures(
    engine: Engine, streams: Sequence[Stream], codec: PictureCodec, prefix: torch.Tensor | None, bar: tqdm
) -> list[torch.Tensor]:
    """Run all streams to their ends: the new frames of each, uint8 [frames, H, W, 3].

    prefix: latents of the frames that all of them continue. bar: shows the passes of the first.
    Raises the error of the first stream that fails. Then, and by any other error, all of them end.
    """
    decoders = [codec.decoder(prefix) for _ in streams]
    pictures: list[list[torch.Tensor]] = [[] for _ in streams]

    def decode(piece: tuple[int, torch.Tensor]) -> tuple[int, torch.Tensor]:
        return piece[0], decoders[piece[0]].push(piece[1])

    with DecodeWorker(decode, MOST_UNREAD, engine.device) as worker, cancelled_at_last(streams):

        def keep() -> None:
            index, decoded = worker.take()
            pictures[index].append(decoded)

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
    engine: Engine, stream: Stream, codec: PictureCodec, prefix: torch.Tensor | None
) -> Iterator[VideoFrame]:
    """The frames of one stream as they become clean. Closing the iterator cancels the stream."""
    decoder, started = codec.decoder(prefix), time.perf_counter()
    latents: deque[LatentFrame] = deque()

    def decode(frame: LatentFrame) -> VideoFrame:
        # One at a time, also where several are there: a batch would round differently.
        image, seconds = decoder.push(frame.latent[None])[0], time.perf_counter() - started
        return VideoFrame(frame.index, image, frame.latent, seconds, stream.request.seed)

    with DecodeWorker(decode, MOST_UNREAD, engine.device) as worker, cancelled_at_last([stream]):
        while True:
            latents.extend(stream.take_ready())
            while latents and worker.unread < MOST_UNREAD:
                worker.submit(latents.popleft())
            if worker.ready or (worker.unread and (latents or stream.done)):
                yield worker.take()
            elif stream.done:
                stream.raise_if_failed()
                return
            else:
                engine.step()
