# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: what is put where, what must come of it, and one function that runs a case and checks it.

A case is eight streams of a bed (`fault_beds`) in one engine with not a page to spare. One of them, the
victim, is struck. `run` raises AssertionError unless: the victim
ends as `OUTCOMES` says; every other stream delivers the frames of the run without a fault, bit for bit; all
pages are back; and a new stream in the same engine gives its own result, bit for bit. Where the thread
dies in a pass, all streams of that pass fail with one typed error, and what they had delivered is right.
"""

from __future__ import annotations

import contextlib
import random
import threading
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from fault_beds import BEDS, LAYERS
from fault_injection import Fault, installed
from helpers.waiting import PATIENCE
from inside import inside

from ardiff_engine.engine import Engine, Stream
from ardiff_engine.errors import ArdiffError, NumericalError, StreamClosedError, StreamInterruptedError

PLACES = ("plan", "pages", "pack", "layer k", "commit", "solver", "hand-over", "decode", "callback")
OUTCOMES = {
    "exception": "fails",
    "nan": "fails",
    "out of memory": "fails",
    "out of memory, once": "goes on",
    "slow reader": "goes on",
    "cancel": "is cancelled",
    "dead worker": "its pass fails",
}
MANY_PAGES = 1000

_NO_NUMBERS = "only whole numbers here"
_READS_LATER = "readers act between passes: to this part of one, a slow reader is a stream that is not there"
_NOT_AGAIN = "has effects of its own, so it is not called a second time"
NOT_APPLICABLE = {
    ("nan", "plan"): _NO_NUMBERS,
    ("nan", "pages"): _NO_NUMBERS,
    ("nan", "hand-over"): "copies numbers that the line before has checked",
    ("out of memory, once", "decode"): _NOT_AGAIN,
    ("out of memory, once", "callback"): _NOT_AGAIN,
} | {("slow reader", place): _READS_LATER for place in PLACES if place not in ("hand-over", "decode")}
PAIRS = [(kind, place) for kind in OUTCOMES for place in PLACES if (kind, place) not in NOT_APPLICABLE]


@dataclass(frozen=True, slots=True)
class Case:
    """One run. victim: which of the eight streams; seed: of all noise, and of where the fault strikes."""

    kind: str
    place: str
    victim: int
    seed: int
    bed: str = "lags"

    @property
    def applies(self) -> bool:
        """Decoding is beside the passes, and the same for all beds; some streams store nothing again."""
        if self.place == "decode":
            return self.bed == "lags"
        return self.place != "commit" or self.victim in BEDS[self.bed].commits

    @property
    def chance(self) -> random.Random:
        return random.Random(f"{self.kind} {self.place} {self.victim} {self.seed}")

    @property
    def expected(self) -> Reference:
        return reference(self.bed, self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The run without a fault: frames and ticks of each stream; pages they can hold; a stream after it."""

    frames: list[list[torch.Tensor]]
    ticks: list[int]
    pages: int
    after: torch.Tensor


@cache
def reference(bed_name: str, seed: int) -> Reference:
    bed = BEDS[bed_name]
    engine = bed.engine(MANY_PAGES)
    streams = bed.submitted(engine, seed)
    pages = sum(inside(stream).pages.most for stream in streams)
    while engine.step():
        pass
    frames = [[frame.latent for frame in stream.take_ready()] for stream in streams]
    after = bed.engine(MANY_PAGES).submit(bed.after).result()
    return Reference(frames, [stream.ticks_done for stream in streams], pages, after)


def run(case: Case) -> None:
    """Raise AssertionError, or whatever came out of the engine, unless the case goes as it must."""
    if case.place == "decode":
        from fault_decoding import run_decode

        run_decode(case)
        return
    bed, expected, chance = BEDS[case.bed], case.expected, case.chance
    tick = _tick(case, expected.ticks[case.victim], chance)
    fault = Fault(case.kind, case.place, tick, LAYERS, chance)
    engine = bed.engine(expected.pages)
    slow = case.kind == "slow reader"
    streams = []
    for number, request in enumerate(bed.requests(case.seed)):
        ahead = 1 if slow and number == case.victim else None
        on_step = fault.call_back if case.place == "callback" else None
        streams.append(engine.submit(replace(request, max_ahead=ahead, on_step=on_step)))
    victim = fault.victim = streams[case.victim]
    # A cancel may strike in the part of any stream that is still there at that tick.
    others = [stream for stream, ticks in zip(streams, expected.ticks, strict=True) if ticks > tick + 1]
    fault.host = chance.choice([victim, *others]) if case.kind == "cancel" else victim
    with installed(fault, engine):
        _drive(engine, fault, streams)
    if slow:
        _check_that_only_this_one_waits(victim, streams)
        victim.result()
    else:
        assert fault.struck, "the fault never struck"
    if case.kind == "dead worker" and case.place != "callback":
        _check_that_all_of_the_pass_failed(case, engine, victim, streams)
        return
    # A thread that dies in a callback dies between two passes.
    outcome = "goes on" if case.kind == "dead worker" else OUTCOMES[case.kind]
    _check_victim(case.kind, outcome, victim)
    for number, stream in enumerate(streams):
        frames = [frame.latent for frame in stream.take_ready()]
        whole = number != case.victim or outcome == "goes on"
        check_frames(frames, expected.frames[number], whole=whole, name=f"stream {number}")
        assert whole <= (stream.state == "finished"), f"stream {number} is {stream.state}"
    check_engine(case, engine, outcome)


def check_frames(frames: list[torch.Tensor], expected: list[torch.Tensor], *, whole: bool, name: str) -> None:
    """All of them, or where a stream has ended early the first ones, bit for bit."""
    assert len(frames) == len(expected) if whole else len(frames) <= len(expected), f"{name}: {len(frames)}"
    assert all(torch.equal(*pair) for pair in zip(frames, expected, strict=False)), f"{name} is another video"


def check_engine(case: Case, engine: Engine, outcome: str) -> None:
    stats = engine.stats()
    assert stats.streams_running == stats.pages_held == stats.pages_promised == 0, stats
    assert stats.pages_free == engine.pool.manager.unpromised == stats.pages_total, stats
    assert stats.streams_failed == (outcome == "fails"), stats
    assert stats.streams_cancelled == (outcome == "is cancelled"), stats
    result = engine.submit(BEDS[case.bed].after).result()
    assert torch.equal(result, case.expected.after), "a new stream gives another video"
    assert engine.stats().pages_held == 0


def _tick(case: Case, ticks: int, chance: random.Random) -> int:
    """From which tick of the victim on the fault strikes; late enough and early enough to strike at all."""
    if case.place == "commit":
        return chance.randint(0, BEDS[case.bed].commits[case.victim])
    if case.place == "callback":  # after a tick, the last one included, where it is not too late then
        return chance.randint(1, ticks - BEDS[case.bed].unseen - (case.kind in ("nan", "cancel")))
    return chance.randrange(ticks - BEDS[case.bed].unseen - (case.kind == "cancel"))


def _drive(engine: Engine, fault: Fault, streams: list[Stream]) -> None:
    if fault.kind == "dead worker":

        def until_dead() -> None:
            with contextlib.suppress(SystemExit):
                while engine.step():
                    pass

        thread = threading.Thread(target=until_dead)
        thread.start()
        thread.join()
        looking = threading.Thread(target=engine.stats, daemon=True)
        looking.start()
        looking.join(PATIENCE)
        assert not looking.is_alive(), "the thread took the engine with it"
    while engine.step():
        fault.wait()
        assert all(not inside(stream).pages.held for stream in streams if stream.done), (
            "pages of an ended stream"
        )


def _check_that_only_this_one_waits(victim: Stream, streams: list[Stream]) -> None:
    assert all(stream.state == "finished" for stream in streams if stream is not victim)
    if victim.request.lag:  # with lag 0 all frames come in the last tick, so nothing is left to wait for
        assert victim.state == "running" and victim.frames_ready == 1


def _check_that_all_of_the_pass_failed(
    case: Case, engine: Engine, victim: Stream, streams: list[Stream]
) -> None:
    """And that nothing else is wrong: what was delivered, the pages, a new stream."""
    assert victim.state == "failed"
    for number, stream in enumerate(streams):
        frames = [frame.latent for frame in stream.take_ready()]
        whole = stream.state == "finished"
        check_frames(frames, case.expected.frames[number], whole=whole, name=f"stream {number}")
        if not whole:
            with pytest.raises(StreamInterruptedError):
                stream.result()
    stats = engine.stats()
    assert stats.streams_running == stats.pages_held == stats.pages_promised == 0, stats
    assert torch.equal(engine.submit(BEDS[case.bed].after).result(), case.expected.after)


def _check_victim(kind: str, outcome: str, victim: Stream) -> None:
    if outcome == "goes on":
        victim.result()
        return
    if outcome == "is cancelled":
        assert victim.state == "cancelled"
        victim.raise_if_failed()
        with pytest.raises(StreamClosedError):
            victim.result()
        return
    assert victim.state == "failed", f"the victim is {victim.state}"
    with pytest.raises(NumericalError if kind == "nan" else ArdiffError) as first:
        victim.raise_if_failed()
    with pytest.raises(ArdiffError) as again:
        victim.result()
    assert again.value is first.value, "one stream, one error"
