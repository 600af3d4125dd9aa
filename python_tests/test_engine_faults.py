# SPDX-License-Identifier: Apache-2.0
"""Faults put into every part of a pass: the stream concerned fails once, the others go on bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from test_engine import engine_for

from ardiff_engine.engine import Request
from ardiff_engine.errors import ArdiffError, NumericalError

STREAMS = 8
PLACES = ("plan", "pages", "pack", "layer 0", "layer 2", "solver", "callback")
FAULTS = ("exception", "out of memory", "nan", "cancel")


def requests() -> list[dict]:
    lags = (0, 1, 2, 4)
    return [{"num_frames": 4, "lag": lags[i % 4], "seed": i} for i in range(STREAMS)]


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    return [engine_for().submit(Request(**options)).result() for options in requests()]


class Fault:
    """Strikes once the victim has done `tick` ticks, in every pass that it is part of."""

    def __init__(self, kind: str, tick: int) -> None:
        self.kind, self.tick, self.victim, self.struck = kind, tick, None, 0

    def here(self, streams) -> bool:
        victim = self.victim
        return victim is not None and victim in streams and not victim.done and victim.ticks_done >= self.tick

    def strike(self) -> None:
        self.struck += 1
        if self.kind == "exception":
            raise ValueError("a fault")
        if self.kind == "out of memory":
            raise MemoryError("a fault")
        if self.kind == "cancel":
            self.victim.cancel()


def install(engine, fault: Fault, place: str) -> None:
    """Wrap the part of the engine that `place` names. NaN appears in the victim's latents there."""
    current: list = []
    pack = engine._packer.pack

    def packing(work):
        current[:] = [stream for stream, _ in work]
        if place == "pack" and fault.here(current):
            if fault.kind == "nan":
                poison(fault.victim)
            fault.strike()
        return pack(work)

    engine._packer.pack = packing
    if place.startswith("layer"):
        block = engine.model.layers[int(place.split()[1])]
        attention = block.attn.forward_hook = block.mlp.register_forward_hook

        def strike(_module, _inputs, output):
            if fault.here(current):
                fault.strike()
                if fault.kind == "nan":
                    rows = len(output) // max(len(current), 1)
                    return torch.where(victim_rows(engine, fault, current, output, rows), torch.nan, output)
            return output

        attention(strike)


def victim_rows(engine, fault, current, output, _rows) -> torch.Tensor:
    """Rows of the victim's frames; contexts come first and stay clean."""
    spec = engine.model.spec
    feeds = [stream.feeder.next() for stream in current]
    context = sum(feed.feeds_context for feed in feeds) * spec.context_tokens
    mask = torch.zeros(len(output), 1, dtype=torch.bool)
    start = context
    for stream, feed in zip(current, feeds, strict=True):
        size = len(feed.frames) * spec.tokens_per_frame
        if stream is fault.victim:
            mask[start : start + size] = True
        start += size
    return mask


def poison(stream) -> None:
    for frame in stream.latents:
        stream.latents[frame] = torch.full_like(stream.latents[frame], torch.nan)


def wrap_stream(stream, fault: Fault, place: str) -> None:
    owner, name = {"plan": (stream.feeder, "next"), "pages": (stream, "prepare")}[place]
    original = getattr(owner, name)

    def wrapped(*arguments):
        if fault.here([stream]):
            if fault.kind == "nan":
                poison(stream)
            fault.strike()
        return original(*arguments)

    setattr(owner, name, wrapped)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", range(3))
def test_one_stream_fails_and_the_others_do_not_notice(alone, place, kind, seed, monkeypatch):
    chance = random.Random(f"{place} {kind} {seed}")
    engine = engine_for(max_pages=400)
    fault = Fault(kind, chance.randint(0, 3))
    number = chance.randrange(STREAMS)
    if place == "solver":
        from ardiff_engine import ops

        step = ops.solver_step

        def solving(x, *rest, **options):
            result = step(x, *rest, **options)
            if fault.here(last):
                fault.strike()
                if fault.kind == "nan":
                    row = next(i for i, (s, _) in enumerate(updates) if s is fault.victim)
                    result.x[row] = torch.nan
            return result

        last: list = []
        updates: list = []
        pack = engine._packer.pack

        def packing(work):
            batch = pack(work)
            last[:], updates[:] = [stream for stream, _ in work], batch.updates
            return batch

        engine._packer.pack = packing
        monkeypatch.setattr(ops, "solver_step", solving)
    elif place not in ("plan", "pages", "callback"):
        install(engine, fault, place)

    def call_back(stream) -> None:
        if stream is fault.victim and fault.here([stream]):
            if kind == "nan":
                poison(stream)
            fault.strike()

    streams = []
    for i, options in enumerate(requests()):
        on_step = call_back if place == "callback" and i == number else None
        streams.append(engine.submit(Request(**options, on_step=on_step)))
    fault.victim = streams[number]
    if place in ("plan", "pages"):
        wrap_stream(fault.victim, fault, place)

    for i, stream in enumerate(streams):
        if i != number:
            assert torch.equal(stream.result(), alone[i]), f"stream {i} noticed"
    assert fault.struck, "the fault never struck"
    victim = fault.victim
    if kind == "cancel":
        assert victim.state == "cancelled"
    elif not victim.done:
        with pytest.raises(ArdiffError):
            victim.result()
    if kind != "cancel":
        assert victim.state == "failed"
        with pytest.raises(NumericalError if kind == "nan" else ArdiffError) as first:
            victim.raise_if_failed()
        with pytest.raises(ArdiffError) as again:
            victim.result()
        assert again.value is first.value, "one stream, one error"
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0
    assert stats.streams_failed == (kind != "cancel") and stats.streams_finished == STREAMS - 1


def test_memory_that_is_short_once_costs_nobody_anything(alone, monkeypatch):
    engine = engine_for(max_pages=400)
    forward, calls = engine.model.forward, []

    def short_once(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("once")
        return forward(*arguments)

    monkeypatch.setattr(engine.model, "forward", short_once)
    streams = [engine.submit(Request(**options)) for options in requests()]
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)
    assert engine.stats().passes_retried == 1 and engine.stats().streams_failed == 0
