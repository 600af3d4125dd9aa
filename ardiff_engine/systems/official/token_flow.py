# SPDX-License-Identifier: Apache-2.0
"""Normalising flows over tokens, x = z·scale(x before) + mean(x before), inverted chunk by chunk: what their
code does event by event, with the toy network of the golden numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import softplus

from ardiff_engine.diffusion.agreement import Agreement, Iteration, agreed_chunk
from ardiff_engine.errors import TensorError
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace

TEXT, ITERATION, RESET = 0, 1, 2
START = 0.1
"""What stands before the first token."""


def guided(mean: torch.Tensor, scale: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Guidance of Gaussians in closed form: [2B, …], with the prompt and without -> [B, …].

    With s = min(1, (scale / scale without)²) and d = 1 + w − w·s: the mean is ((1 + w)·mean − w·s·mean
    without) / d, the scale is scale / √d.
    """
    (mean, free), (scale, free_scale) = mean.chunk(2), scale.chunk(2)
    share = (scale / free_scale).square().clamp(max=1)
    total = 1 + weight - weight * share
    return ((1 + weight) * mean - weight * share * free) / total, scale / total.sqrt()


class ToyFlow:
    """o = u/2 + half the mean of all tokens up to u; a CausalNetwork."""

    def __init__(self, guidance: float = 0.0) -> None:
        self.guidance = guidance
        self.cache = torch.zeros(0)

    @property
    def length(self) -> int:
        return self.cache.shape[1] if self.cache.ndim == 3 else 0

    def keep(self, tokens: torch.Tensor) -> None:
        self.cache = torch.cat([self.cache, tokens], 1) if self.length else tokens

    def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = tokens if self.guidance == 0 else torch.cat([tokens, tokens])
        self.keep(own)
        means = self.cache.cumsum(1) / torch.arange(1, self.length + 1)[:, None]
        o = torch.tanh(0.5 * own + 0.5 * means[:, -own.shape[1] :])
        mean, scale = 0.5 * o + 0.05, softplus(0.3 * o + 0.5413249)
        return (mean, scale) if self.guidance == 0 else guided(mean, scale, self.guidance)

    def forget(self, tokens: int) -> None:
        self.cache = self.cache[:, : self.length - tokens]


class Event(NamedTuple):
    """first: the frame where the cache begins; −1: each begins its own. frames: whose tokens are read."""

    block: int
    kind: int
    batch: int
    cache_before: int
    cache_after: int
    tokens: int
    first: int = 0
    frames: range = range(0)
    chunk_start: int = -1
    chunk_tokens: int = -1
    iteration: int = -1
    rolled_back: int = 0
    residual: float = np.nan
    accepted: bool = False
    target_tokens: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Events(Trace):
    """A row is an event: the text enters the cache (kind 0), an iteration (1), or the cache is emptied (2).

    Of E events, [E]: fields of `Event`, as arrays. after_each_block: float64 [blocks, F, C, H, W], in the
    order in which blocks run; the last one is the result. In terms of a `Trace`, the timestep is the number
    of the iteration, and written is what is agreed.
    """

    events: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    after_each_block: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFlow(System):
    """A flow of blocks. The last one runs first, over the text and the whole video, with guidance; the others
    over each frame, which are a batch. Blocks of even numbers read a frame from its end.

    grid: tokens along an edge of a frame. chunk: tokens that are solved together; four times as many after
    the first frame. context: frames that the cache is made of again when `window` is full.
    """

    grid: int
    chunk: int
    agreement: Agreement
    text_tokens: int
    blocks: int
    window: int | None = None
    context: int = 0

    def trace(
        self,
        num_frames: int | None = None,
        *,
        noise: npt.ArrayLike | None = None,
        step_noise: npt.ArrayLike | None = None,
        text: npt.ArrayLike | None = None,
    ) -> Events:
        """The number of iterations depends on the numbers. noise: [F, C, grid, grid]; text: [B, tokens, C], B
        = 2 with guidance: with the prompt and without. None: drawn, always the same. TensorError: other
        shapes. step_noise: a flow draws none.
        """
        batch = 2 if self.guidance else 1
        random = torch.Generator().manual_seed(0)
        shape = (num_frames or self.num_frames or 1, 2, self.grid, self.grid)
        z = torch.randn(shape, generator=random) if noise is None else torch.tensor(np.asarray(noise))
        if z.ndim != 4 or z.shape[2:] != shape[2:]:
            raise TensorError(
                f"{self.name}: noise {list(z.shape)}; expected [F, C, {self.grid}, {self.grid}]"
            )
        frames, channels = z.shape[:2]
        given = torch.randn(batch, self.text_tokens, channels, generator=random)
        words = given if text is None else torch.tensor(np.asarray(text))
        if words.shape != given.shape:
            raise TensorError(f"{self.name}: text {list(words.shape)}; expected {list(given.shape)}")
        x = z.double().flatten(2).transpose(1, 2)
        events: list[Event] = []
        results = []
        for block in reversed(range(self.blocks)):
            own = x.flip(1) if block % 2 == 0 else x
            if block == self.blocks - 1:
                whole = own.reshape(1, -1, channels).clone()
                events += self._video(block, whole, words.double())
                own = whole.view_as(own)
            else:
                own = own.clone()
                events += self._chunks(block, ToyFlow(), own, range(own.shape[1]), range(frames))
            x = own.flip(1) if block % 2 == 0 else own
            results.append(x.transpose(1, 2).reshape(z.shape).numpy())
        return _traced(events, frames, np.stack(results))

    def _video(self, block: int, x: torch.Tensor, text: torch.Tensor) -> Iterator[Event]:
        """Window by window; a new one begins with the text and the context, which is read once."""
        size = self.grid**2
        frames = x.shape[1] // size
        first, done, stop = 0, 0, min(self.window or frames, frames)
        while True:
            network = ToyFlow(self.guidance)
            network.keep(text)
            yield Event(block, TEXT, len(text), 0, network.length, network.length, first)
            if done:
                network.read(_before(x, first * size, done * size, restart=True))
            yield from self._chunks(block, network, x, range(done * size, stop * size), first=first)
            if stop == frames:
                return
            yield Event(block, RESET, 0, network.length, 0, 0, first)
            first, done = stop - self.context, stop
            stop = min(first + (self.window or 0), frames)

    def _chunks(
        self,
        block: int,
        network: ToyFlow,
        x: torch.Tensor,
        span: range,
        batch: range | None = None,
        first: int = -1,
    ) -> Iterator[Event]:
        """x [B, n, C]: its tokens z in `span` become those of the result. batch: the frames of x, if B."""
        size, start = self.grid**2, span.start
        while start < span.stop:
            stop = min(start + self.chunk * (1 if start <= size else 4), span.stop)
            # A frame is much like the one before: its tokens are the first guess of what is read.
            guess = x[:, start - 1 - size : stop - 1 - size] if start > size else None
            last = _before(x, start, start + 1)
            before = network.length
            held = batch or range(start // size, (stop - 1) // size + 1)
            event = Event(
                block,
                ITERATION,
                len(x) * (2 if network.guidance else 1),
                before,
                before + stop - start,
                stop - start,
                first,
                held,
                start,
                stop - start,
                target_tokens=span.stop,
            )
            made: Iteration | None = None
            for made in agreed_chunk(network, x[:, start:stop], last, self.agreement, guess):
                yield event._replace(
                    iteration=made.number,
                    rolled_back=0 if made.agreed else stop - start,
                    residual=made.residual,
                    accepted=made.agreed,
                )
            assert made is not None
            x[:, start:stop] = made.x
            start = stop


RECORDED = [name for name in Event._fields if name not in ("first", "frames")]


def _before(x: torch.Tensor, start: int, stop: int, restart: bool = False) -> torch.Tensor:
    """The tokens one before each; restart: nothing is known before the first."""
    nothing = torch.full_like(x[:, :1], START)
    if start and not restart:
        return x[:, start - 1 : stop - 1]
    return torch.cat([nothing, x[:, start : stop - 1]], 1)


def _traced(events: Sequence[Event], frames: int, results: npt.NDArray[np.float64]) -> Events:
    made = Trace.empty(len(events), frames)
    writer = np.full(frames, -1)
    for row, own in enumerate(events):
        made.fed[row, own.frames] = made.updated[row, own.frames] = True
        made.timestep[row, own.frames] = own.iteration
        made.written[row, own.frames] = own.accepted
        writer[own.frames] = row
        for frame in own.frames:
            start = frame if own.first < 0 else own.first
            made.visible[row, frame, start : frame + 1] = True
            made.position[row, start : frame + 1] = np.arange(frame + 1 - start)
            made.key_call[row, start : frame + 1] = writer[start : frame + 1]
    columns = {name: np.array([getattr(own, name) for own in events]) for name in RECORDED}
    plain = {own.name: getattr(made, own.name) for own in fields(made)}
    return Events(**plain, events=columns, after_each_block=results)
