# SPDX-License-Identifier: Apache-2.0
"""Faults put into every part of a pass: the stream concerned fails once, the others go on bit for bit.

Here two victims of each combination of the fault matrix; `tools/fault_table.py` runs all of it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from fault_cases import NOT_APPLICABLE, OUTCOMES, PAIRS, PLACES, STREAMS, Case, reference, requests, run
from fault_injection import SHORT_MEMORY, Fault
from test_engine import engine_for

from ardiff_engine.engine import Request
from ardiff_engine.errors import ArdiffError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("kind", "place"), PAIRS)
def test_one_stream_is_struck_and_the_others_do_not_notice(kind, place):
    for seed, victim in enumerate(random.Random(f"{kind} {place}").sample(range(STREAMS), 2)):
        run(Case(kind, place, victim, seed))


def test_the_matrix_notices_a_fault_that_spreads(monkeypatch):
    """A cancel that takes the next stream along must not pass."""
    strike = Fault.strike

    def strikes_two(fault):
        strike(fault)
        streams = [ref() for ref in fault.victim.engine.register._streams.values()]
        next(stream for stream in streams if stream is not None and not stream.done).cancel()

    monkeypatch.setattr(Fault, "strike", strikes_two)
    with pytest.raises(AssertionError):
        run(Case("cancel", "callback", 3, 0))


def test_streams_of_a_case_differ_from_each_other_and_from_those_of_the_next_seed():
    videos = [frame for seed in range(2) for frames in reference(seed).frames for frame in frames]
    assert all(not torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert len(requests(0)) == STREAMS


@pytest.mark.parametrize("error", SHORT_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_is_short_once_costs_nobody_anything(monkeypatch, error):
    engine = engine_for(max_pages=400)
    forward, calls = engine.model.forward, []

    def short_once(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return forward(*arguments)

    monkeypatch.setattr(engine.model, "forward", short_once)
    streams = [engine.submit(Request(num_frames=4, lag=i, seed=i)) for i in range(3)]
    for i, stream in enumerate(streams):
        assert torch.equal(stream.result(), engine_for().submit(stream.request).result()), i
    assert engine.stats().passes_retried == 1 and engine.stats().streams_failed == 0


def test_a_video_that_waits_starts_when_the_one_before_it_fails():
    """Stepping "until nothing can run" must not end between the two."""
    engine = engine_for(max_pages=5)
    engine.register._max_waiting = 1
    bad = engine.submit(Request(num_frames=6, lag=2))
    good = engine.submit(Request(num_frames=6, lag=2, seed=1))
    assert good.state == "waiting"
    bad.feeder.next = None  # type: ignore[method-assign]
    while engine.step():
        pass
    assert bad.state == "failed" and good.state == "finished"


def test_an_interrupt_in_a_last_callback_lets_all_others_finish():
    def interrupt(stream):
        if stream.feeder.done:
            raise KeyboardInterrupt

    engine, called = engine_for(), []
    first = engine.submit(Request(num_frames=3, lag=1, on_step=interrupt))
    other = engine.submit(Request(num_frames=3, lag=1, on_step=lambda stream: called.append(1)))
    with pytest.raises(KeyboardInterrupt):
        other.result()
    assert first.state == other.state == "finished"
    assert len(called) == other.ticks_done, "the other's last callback was skipped"


def test_an_interrupt_while_results_are_handed_over_moves_nobody_by_half():
    engine = engine_for()
    streams = [engine.submit(Request(num_frames=3, lag=1, seed=seed)) for seed in range(3)]
    copies, calls = streams[1].clean_copies, []

    def interrupt_once(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return copies(*arguments)

    streams[1].clean_copies = interrupt_once  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        streams[0].result()
    assert len({stream.ticks_done for stream in streams}) == 1
    for stream in streams:
        request = Request(num_frames=3, lag=1, seed=stream.request.seed)
        assert torch.equal(stream.result(), engine_for().submit(request).result())


def test_a_cancel_while_pages_are_taken_does_not_break_the_pass():
    engine = engine_for()
    first, second = (engine.submit(Request(num_frames=3, lag=1, seed=seed)) for seed in range(2))
    prepare = second.prepare

    def collected(*arguments):
        first.cancel()
        return prepare(*arguments)

    second.prepare = collected  # type: ignore[method-assign]
    assert torch.equal(second.result(), engine_for().submit(Request(num_frames=3, lag=1, seed=1)).result())
    assert engine.stats().passes_retried == 0


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
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    assert rows[0] == ["fault", *PLACES], "run tools/fault_table.py"
    assert [row[0] for row in rows[2:]] == list(OUTCOMES)
    for row in rows[2:]:
        for place, cell in zip(PLACES, row[1:], strict=True):
            assert cell.startswith("—") == ((row[0], place) in NOT_APPLICABLE)
            good, _, total = cell.partition(" of ")
            assert cell.startswith("—") or (good == total and int(total) >= 20)
