# SPDX-License-Identifier: Apache-2.0
"""Faults put into every part of a pass: the stream concerned fails once, the others go on bit for bit.

Here each kind at each place, and each of both in each bed; with ARDIFF_TESTS=all, all of them in each bed
and with two victims. `tools/fault_table.py` runs the whole matrix.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from effort import ALL, covering
from fault_beds import BEDS, STREAMS
from fault_cases import NOT_APPLICABLE, OUTCOMES, PAIRS, PLACES, Case, reference, run
from fault_injection import SHORT_MEMORY, Fault
from inside import inside
from test_engine import engine_for

from ardiff_engine import ops
from ardiff_engine.engine import Request
from ardiff_engine.engine.batch import Packer
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.reader import Outbox
from ardiff_engine.engine.state import StreamState
from ardiff_engine.engine.stream_pages import StreamPages
from ardiff_engine.errors import ArdiffError, EngineBusyError, StreamInterruptedError
from ardiff_engine.memory import PageManager

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("kind", "place", "bed"), covering([(*pair, bed) for pair in PAIRS for bed in BEDS]))
def test_one_stream_is_struck_and_the_others_do_not_notice(kind, place, bed):
    victims = random.Random(f"{kind} {place} {bed}").sample(range(STREAMS), STREAMS)
    cases = [Case(kind, place, victim, seed % 2, bed) for seed, victim in enumerate(victims)]
    for case in [case for case in cases if case.applies][: 2 if ALL else 1]:
        run(case)


@pytest.mark.parametrize("bed", BEDS)
def test_the_matrix_notices_a_fault_that_spreads(monkeypatch, bed):
    """A cancel that takes the next stream along must not pass."""
    strike = Fault.strike

    def strikes_two(fault):
        strike(fault)
        engine = fault.victim.engine
        engine.leave(next(state for state in engine._scheduler.streams.values() if not state.over))

    monkeypatch.setattr(Fault, "strike", strikes_two)
    with pytest.raises(AssertionError):
        run(Case("cancel", "callback", 3, 0, bed))


@pytest.mark.parametrize("bed", BEDS)
def test_streams_of_a_case_differ_from_each_other_and_from_those_of_the_next_seed(bed):
    videos = [frame for seed in range(2) for frames in reference(bed, seed).frames for frame in frames]
    assert all(not torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert len(BEDS[bed].requests(0)) == STREAMS


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("error", SHORT_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_is_short_once_costs_nobody_anything(monkeypatch, error, count):
    engine = engine_for(max_pages=400)
    forward, calls = engine.model.forward, []

    def short_once(*arguments):
        calls.append(1)
        if len(calls) == count:
            raise error
        return forward(*arguments)

    monkeypatch.setattr(engine.model, "forward", short_once)
    streams = [engine.submit(Request(num_frames=4, lag=i, seed=i)) for i in range(count)]
    for i, stream in enumerate(streams):
        assert torch.equal(stream.result(), engine_for().submit(stream.request).result()), i
    assert engine.stats().passes_retried == 1 and engine.stats().streams_failed == 0


def test_a_video_that_waits_starts_when_the_one_before_it_fails():
    """Stepping "until nothing can run" must not end between the two."""
    engine = engine_for(max_pages=5, max_waiting=1)
    bad = engine.submit(Request(num_frames=6, lag=2))
    good = engine.submit(Request(num_frames=6, lag=2, seed=1))
    assert good.state == "waiting"
    inside(bad).feeder.next = None  # type: ignore[method-assign]
    while engine.step():
        pass
    assert bad.state == "failed" and good.state == "finished"


PARTS = {
    "plan": (Feeder, "next"),
    "pages": (StreamPages, "prepare"),
    "taking a page": (PageManager, "_take"),
    "pack": (Packer, "pack"),
    "solver": (ops, "solver_step"),
    "copies": (StreamState, "settled"),
    "move": (StreamState, "move"),
    "delivery": (Outbox, "deliver"),
}


@pytest.mark.parametrize("call", range(1, 8, 2) if ALL else (1, 5))
@pytest.mark.parametrize("part", PARTS)
def test_an_interrupted_step_fails_its_streams_and_leaves_the_rest_right(part, call, monkeypatch):
    """Ctrl-C after the n-th call of some part of a pass; a stream that had no part in it goes on."""
    engine = engine_for(max_pages=60)
    outside = engine.submit(Request(num_frames=6, lag=2, seed=9, max_ahead=1))
    while engine.step():
        pass
    streams = [engine.submit(Request(num_frames=6, lag=2, seed=seed)) for seed in range(3)]
    streams.append(streams[0].fork())
    owner, name = PARTS[part]
    plain, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        result = plain(*arguments, **options)
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            while engine.step():
                pass
    stats, manager = engine.stats(), engine.pool.manager
    struck = [stream for stream in streams if stream.state == "failed"]
    assert len(struck) == stats.streams_failed >= 1 and outside.state == "running"
    for stream in struck:
        with pytest.raises(StreamInterruptedError):
            stream.result()
    assert manager.held == stats.pages_held == inside(outside).pages.held
    assert stats.pages_promised == inside(outside).pages.most
    assert [manager.holders(page) for page in inside(outside).pages.ids] == [1] * manager.held
    assert torch.equal(engine.submit(Request(num_frames=6, lag=2, seed=1)).result(), alone(seed=1))
    assert torch.equal(outside.result(), alone(seed=9))
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def alone(**options) -> torch.Tensor:
    return engine_for().submit(Request(**({"num_frames": 6, "lag": 2} | options))).result()


def test_an_interrupt_in_a_last_callback_lets_all_others_finish():
    def interrupt(stream):
        if stream.ticks_done == stream.num_ticks:
            raise KeyboardInterrupt

    engine = engine_for()
    first = engine.submit(Request(num_frames=3, lag=1, on_step=interrupt))
    other = engine.submit(Request(num_frames=3, lag=1))
    with pytest.raises(KeyboardInterrupt):
        other.result()
    assert first.state == other.state == "finished"


def test_a_cancel_while_pages_are_taken_does_not_break_the_pass(monkeypatch):
    engine = engine_for()
    first, second = (engine.submit(Request(num_frames=3, lag=1, seed=seed)) for seed in range(2))
    prepare = StreamPages.prepare

    def collected(pages, *rosters):
        if pages is inside(second).pages:
            first.cancel()
        return prepare(pages, *rosters)

    monkeypatch.setattr(StreamPages, "prepare", collected)
    assert torch.equal(second.result(), engine_for().submit(Request(num_frames=3, lag=1, seed=1)).result())
    assert first.state == "cancelled" and engine.stats().passes_retried == 0


def test_nothing_but_a_cancel_is_accepted_from_within_a_pass(monkeypatch):
    engine = engine_for()
    stream = engine.submit(Request(num_frames=3, lag=1))
    forward = engine.model.forward

    def hooked(*arguments):
        stream.suspend()
        return forward(*arguments)

    monkeypatch.setattr(engine.model, "forward", hooked)
    with pytest.raises(EngineBusyError):
        stream.result()


def test_an_error_that_is_ours_keeps_its_type_and_another_one_its_cause():
    engine = engine_for()
    cause = ValueError("mine")

    def explode(stream):
        raise cause

    stream = engine.submit(Request(num_frames=3, lag=1, on_step=explode))
    with pytest.raises(ArdiffError, match="ValueError: mine") as caught:
        stream.result()
    assert caught.value.__cause__ is cause


def test_the_table_in_the_documentation_is_that_of_these_cases():
    text = (ROOT / "docs" / "reliability.md").read_text()
    table = text.split("<!-- faults:begin -->")[1].split("<!-- faults:end -->")[0]
    tables = [part for part in table.split("\n\n") if part.startswith("|")]
    assert len(tables) == len(BEDS)
    for bed, lines in zip(BEDS, tables, strict=True):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()]
        assert rows[0] == ["fault", *PLACES], "run tools/fault_table.py"
        assert [row[0] for row in rows[2:]] == list(OUTCOMES)
        for row in rows[2:]:
            for place, cell in zip(PLACES, row[1:], strict=True):
                applies = any(Case(row[0], place, victim, 0, bed).applies for victim in range(STREAMS))
                empty = not applies or (row[0], place) in NOT_APPLICABLE
                assert cell.startswith("—") == empty
                good, _, total = cell.partition(" of ")
                assert empty or (good == total and int(total) >= 20)
