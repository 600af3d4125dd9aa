# SPDX-License-Identifier: Apache-2.0
"""One video being generated, as its user holds it: frames to read, and calls that change it on its way."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch

from ardiff_engine.diffusion.guidance import Branch
from ardiff_engine.engine.decoding import Picture
from ardiff_engine.engine.inbox import Inbox
from ardiff_engine.engine.reader import Changes, LatentFrame
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.state import Status, StreamState
from ardiff_engine.engine.stream_edits import ConditionReceipt, Editor, Effect
from ardiff_engine.errors import ConfigError, EngineBusyError, StreamClosedError, explain
from ardiff_engine.models.protocol import VideoModel

T = TypeVar("T")


class Driver(Protocol):
    """What a handle needs of its engine."""

    model: VideoModel
    changes: Changes
    inbox: Inbox

    def advance(self) -> bool:
        """Run a step, unless a thread of the engine's own runs them; whether anything ran."""

    def drive(self, state: StreamState, reached: Callable[[], bool]) -> None:
        """Run passes, or wait for those of others, until `reached` says so."""

    def edit(self, act: Callable[[Editor], T]) -> T:
        """What `act` returns, called between two passes."""

    def leave(self, state: StreamState) -> None:
        """Cancel without waiting: at once if no pass is running, else before the next one."""

    def stalled(self, state: StreamState) -> EngineBusyError:
        """What a reader raises when nothing has been able to run for too long."""

    def adopt(self, state: StreamState, request: Request) -> Stream:
        """The handle of a new stream."""


class Stream:
    """Made by `Engine.submit`. Iterate it (also with `async for`) for frames in order, or take `result()`.

    Leaving the loop, `cancel()` and dropping the last reference give all pages back. Iterating drives the
    engine: every pass serves all running streams. A stream whose request has `on_step` runs on without a
    reference, for as long as there are passes that may call it.
    """

    def __init__(self, engine: Driver, state: StreamState, request: Request) -> None:
        self.engine = engine
        self.request = request
        self._state = state
        # Called by the collector, so it only makes a note. It must not refer to the engine, which may be
        # garbage together with its streams.
        weakref.finalize(self, engine.inbox.leave, state).atexit = False

    def __repr__(self) -> str:
        total = "endless" if self.num_frames is None else f"{self.num_frames} frames"
        return f"<Stream {self.number}: {self.state}, {total}, {self.frames_ready} ready to be read>"

    @property
    def number(self) -> int:
        """In the order of submission."""
        return self._state.number

    @property
    def state(self) -> Status:
        """waiting (for pages), running, suspended, finished, cancelled or failed."""
        return self._state.shown

    @property
    def done(self) -> bool:
        """True once nothing more will be computed: finished, cancelled or failed."""
        return self._state.over

    @property
    def num_frames(self) -> int | None:
        """Frames of the whole video, given ones and extensions included; None: endless."""
        return self._state.num_frames

    @property
    def frames_ready(self) -> int:
        """Clean frames that wait to be read."""
        return len(self._state.outbox)

    @property
    def ticks_done(self) -> int:
        """Ticks of the plan that have run, those that were rolled back included."""
        return self._state.feeder.ticks_total

    @property
    def num_ticks(self) -> int | None:
        """Ticks of the present plan; None: endless."""
        return self._state.feeder.plan.num_ticks

    @property
    def levels(self) -> Mapping[int, int]:
        """Frame -> steps done, of the frames that the next tick moves. A look, from any thread."""
        plan, tick = self._state.feeder.plan, self._state.feeder.tick
        if plan.num_ticks is not None and tick >= plan.num_ticks:
            return MappingProxyType({})
        now = plan.tick(tick)
        return MappingProxyType(dict(zip(now.frames, now.levels, strict=True)))

    @property
    def pages_held(self) -> int:
        """Pages of the pool that it holds now, those that it shares with others included."""
        return self._state.pages.held

    @property
    def latents(self) -> Mapping[int, torch.Tensor]:
        """Frame -> latent now, in the layout of the model, of all frames that are at work or still seen. A
        look, for callbacks; not to be written."""
        return MappingProxyType({frame: self._shown(x) for frame, x in list(self._state.latents.items())})

    def mean_keys(self, frame: int) -> torch.Tensor:
        """float32 [layers, kv_heads, head_dim]: the mean key of the frame's tokens, as if it stood at place 0
        (with RoPE, turned back in time; rows and columns stay). Of the first branch, as last stored.

        ConfigError: a frame whose K/V are not there, or not of one copy."""
        return self.engine.edit(lambda editor: editor.mean_keys(self._state, frame))

    def pictures(self) -> Iterator[Picture]:
        """The pictures of an engine with a codec, in order, as they come; otherwise as iterating the stream,
        which gives the same ones with their latent frames. ConfigError: an engine without a codec."""
        if self._state.decoder is None:
            raise ConfigError("pictures() of an engine without a codec: give one to it, Engine(codec=...)")

        def read() -> Iterator[Picture]:
            with contextlib.closing(iter(self)) as frames:
                for frame in frames:
                    yield from frame.pictures

        return read()

    def take_ready(self) -> list[LatentFrame]:
        """The frames that are ready now, without running anything."""
        frames = [self._in_layout(frame) for frame in self._state.outbox.take_all()]
        if frames:
            self.engine.changes.notify()
        return frames

    def cancel(self) -> None:
        """Stop, and give all pages back: at once, or when the pass is over that another thread is in.

        Returns at once. Frames that are ready can still be read.
        """
        self.engine.leave(self._state)

    def result(self) -> torch.Tensor:
        """Run to the end: clean latents [num_frames, ...] in the layout of the model, given ones included.

        Frames that were not read by then can still be iterated.
        """
        state = self._state
        kept = state.outbox.kept
        if kept is None:
            raise StreamClosedError(
                explain(
                    "result() of an endless stream",
                    got="num_frames=None",
                    expected="a finite video",
                    fix="Iterate the stream instead.",
                )
            )
        state.collecting = True
        try:
            self.engine.drive(state, lambda: self.done)
        finally:
            state.collecting = False
        self.raise_if_failed()
        if self.state == "cancelled":
            raise StreamClosedError(
                explain(
                    "result() of a cancelled stream",
                    got="an unfinished video",
                    expected="a finished one",
                    fix="Submit a new request.",
                )
            )
        return self._shown(torch.stack(kept))

    def raise_if_failed(self) -> None:
        """Raise the error that ended this stream, if one did."""
        if self._state.error is not None:
            raise self._state.error

    def __iter__(self) -> Generator[LatentFrame, None, None]:
        state = self._state
        try:
            while True:
                self.engine.drive(state, lambda: len(state.outbox) > 0 or self.done)
                frame = self._take()
                if frame is None:
                    self.raise_if_failed()
                    return
                yield frame
        finally:
            self.engine.leave(state)

    def __aiter__(self) -> AsyncFrames:
        return AsyncFrames(self)

    def set_condition(
        self,
        condition: torch.Tensor | int | None,
        *,
        negative_condition: torch.Tensor | int | None = None,
        effect: Effect = "keep",
    ) -> ConditionReceipt:
        """Another condition from the next pass on; the receipt says from which frame it holds.

        effect: "keep" leaves the stored K/V of clean frames as they are, so the new frames follow the old
            ones. "recommit" computes those of the clean frames in the window again, under the new condition.
            "reset" forgets the clean frames: what comes next is not a continuation of them. Frames in flight
            go on under the new condition in all three. Where later frames change earlier ones (masks other
            than `temporal_causal`) nothing is stored, and "keep" is the same as "recommit".
        negative_condition: None leaves the negative branch as it is.
        """
        return self.engine.edit(
            lambda editor: editor.set_condition(self._state, condition, negative_condition, effect)
        )

    def set_branches(self, branches: Sequence[Branch], *, effect: Effect = "keep") -> ConditionReceipt:
        """Other conditions and weights of guidance from the next pass on, also for frames in flight.

        branches: as many as the stream has, with the same views. effect: as in `set_condition`.
        """
        return self.engine.edit(lambda editor: editor.set_branches(self._state, branches, effect))

    def set_frame_inputs(self, inputs: Mapping[str, Any], *, in_flight: bool = True) -> ConditionReceipt:
        """Other inputs of frames (`Request.frame_inputs`) from the next pass on; the receipt says from which
        frame they hold. What is not named stays as it is. After going back further they hold from there on.

        in_flight: whether frames in flight go on with the new ones. False: from the next frame that starts,
            so the video is the one that a request with those inputs for those frames makes.
        """
        return self.engine.edit(lambda editor: editor.set_frame_inputs(self._state, inputs, in_flight))

    def fork(
        self,
        *,
        seed: int | None = None,
        noise_stream: int | None = None,
        on_step: Callable[[Stream], None] | None = None,
    ) -> Stream:
        """A second stream that goes on from here. Pages are shared until one of the two writes them.

        With the same noise and condition both make the same frames; another `seed` or `noise_stream` holds
        for frames that have not started and for step noise. The fork delivers frames that this stream had not
        finished yet; `result()` gives the whole video. Raises OutOfPagesError when the pool cannot promise as
        many pages again.
        """

        def act(editor: Editor) -> Stream:
            return self.engine.adopt(*editor.fork(self._state, seed, noise_stream, on_step))

        return self.engine.edit(act)

    def block(self, frame: int) -> range:
        """The frames that move together with this one."""
        return self._state.feeder.plan.block(frame)

    def rollback(self, frame: int, given: torch.Tensor | None = None) -> None:
        """Forget `frame` and all later ones and generate them again, as if the frames before were given.

        given: clean latents [n, ...] in the layout of the model, whole blocks, which take the places of the
            first n of them; the stream goes on behind those. They are not delivered: you have them.

        Frames after it that were not read are dropped; those that were read will come again. K/V that have
        left the window are computed anew from the clean frames, so endless streams, which do not keep those,
        can only go back as far as their window reaches. A decoder is made again from the clean latents before
        `frame`, those that the codec's `history` names.
        """
        self.engine.edit(lambda editor: editor.rollback(self._state, frame, given))

    def extend(self, frames: int) -> None:
        """Make the video longer by that many frames; only before its last frame is finished.

        Before the plan would start them, they simply join it. Later, or with lag 0, they continue the
        finished video as one that is given.
        """
        self.engine.edit(lambda editor: editor.extend(self._state, frames))

    def suspend(self) -> None:
        """Move K/V and latents to host memory and give all pages and the promise of them back."""
        self.engine.edit(lambda editor: editor.suspend(self._state))

    def resume(self) -> None:
        """Go on after `suspend`, bit for bit. While the pool is full: OutOfPagesError, no change."""
        self.engine.edit(lambda editor: editor.resume(self._state))

    def _take(self) -> LatentFrame | None:
        frame = self._state.outbox.take()
        if frame is not None:
            self.engine.changes.notify()
        return None if frame is None else self._in_layout(frame)

    def _in_layout(self, frame: LatentFrame) -> LatentFrame:
        return replace(frame, latent=self._shown(frame.latent))

    def _shown(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents [..., tokens, channels] in the layout of the model."""
        return self.engine.model.from_tokens(tokens, self._state.request.size)


class AsyncFrames(AsyncIterator[LatentFrame]):
    """Frames in order. Passes run in threads, so the event loop stays free; waiting for others takes none.

    Leaving the loop, an error, the end of the task and dropping the last reference cancel the stream: an
    asynchronous generator is closed by the event loop only when that turns again, and until then the stream
    would hold its pages.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __anext__(self) -> LatentFrame:
        stream, engine = self._stream, self._stream.engine
        try:
            while (frame := stream._take()) is None:
                if stream.done:
                    stream.raise_if_failed()
                    raise StopAsyncIteration
                before = engine.changes.count
                if await asyncio.to_thread(engine.advance) or stream.frames_ready or stream.done:
                    continue
                if not await engine.changes.wait_async(before):
                    raise engine.stalled(stream._state)
            return frame
        except BaseException:
            engine.leave(stream._state)
            raise

    async def aclose(self) -> None:
        """Cancel the stream, as `contextlib.aclosing` does."""
        self._stream.engine.leave(self._stream._state)

    def __del__(self) -> None:
        self._stream.engine.leave(self._stream._state)
