# SPDX-License-Identifier: Apache-2.0
"""Decoding in a thread: same bits, same order, bounded; every way it can end reaches the reader."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from helpers.waiting import PATIENCE, decoding_threads, eventually

from ardiff_engine.codec import worker as decode_worker
from ardiff_engine.codec.worker import DecodeWorker
from ardiff_engine.errors import ArdiffError, ConfigError, NumericalError, StreamClosedError


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert eventually(lambda: not decoding_threads()), "of an earlier module"
    yield
    assert eventually(lambda: not decoding_threads())


class Gate:
    """A decoder that doubles, but each piece only after `open()` allowed it."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.began: list[int] = []

    def open(self, pieces: int) -> None:
        self.allowed.release(pieces)

    def __call__(self, piece: int) -> int:
        self.began.append(piece)
        assert self.allowed.acquire(timeout=PATIENCE)
        return 2 * piece


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Runs `work` in a thread of the test; what it returned or raised ends up in the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except ArdiffError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_results_come_in_order():
    with DecodeWorker(lambda piece: -piece, most_waiting=3) as worker:
        taken = []
        for piece in range(50):
            worker.submit(piece)
            while worker.ready:
                taken.append(worker.take())
        while worker.unread:
            taken.append(worker.take())
    assert taken == [-piece for piece in range(50)]


def test_at_most_so_many_wait_for_the_decoder():
    gate = Gate()
    with DecodeWorker(gate, most_waiting=2) as worker:
        worker.submit(0)
        assert eventually(lambda: gate.began == [0])
        worker.submit(1)
        worker.submit(2)
        blocked, outcome = in_thread(lambda: worker.submit(3))
        blocked.join(0.05)
        assert blocked.is_alive() and worker.unread == 3 and not worker.ready
        gate.open(1)
        blocked.join(PATIENCE)
        assert outcome == [None] and worker.unread == 4
        gate.open(3)
        assert [worker.take() for _ in range(4)] == [0, 2, 4, 6]
        assert worker.unread == 0 and not worker.ready


def test_results_that_nobody_takes_do_not_stop_the_submitter():
    with DecodeWorker(lambda piece: piece, most_waiting=1) as worker:
        for piece in range(20):
            worker.submit(piece)
        assert [worker.take() for _ in range(20)] == list(range(20))


def test_taking_what_is_not_on_its_way_is_an_error_and_not_a_wait():
    with DecodeWorker(lambda piece: piece, most_waiting=1) as worker:
        with pytest.raises(StreamClosedError, match="no piece"):
            worker.take()
        worker.submit(1)
        assert worker.take() == 1


@pytest.mark.parametrize("most", [0, -1])
def test_a_queue_without_room_is_refused(most):
    with pytest.raises(ConfigError, match="most_waiting"):
        DecodeWorker(lambda piece: piece, most_waiting=most)


def test_the_thread_computes_with_as_many_threads_as_its_caller():
    with DecodeWorker(lambda _: torch.get_num_threads(), most_waiting=1) as worker:
        worker.submit(0)
        assert worker.take() == torch.get_num_threads()


def test_a_piece_is_let_go_once_it_is_decoded():
    piece = torch.zeros(3)
    gone = weakref.ref(piece)
    with DecodeWorker(lambda latents: latents.sum().item(), most_waiting=1) as worker:
        worker.submit(piece)
        del piece
        assert worker.take() == 0
        assert eventually(lambda: gone() is None)


class Explodes:
    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.seen = at, error, 0

    def __call__(self, piece: int) -> int:
        self.seen += 1
        if piece == self.at:
            raise self.error
        return piece


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("error", [ValueError("bad latents"), MemoryError(), SystemExit(3), StopIteration()])
def test_an_error_comes_once_after_what_was_decoded_before_it(at, error):
    decoder = Explodes(at, error)
    worker = DecodeWorker(decoder, most_waiting=2)
    for piece in range(8):
        worker.submit(piece)
    assert [worker.take() for _ in range(at)] == list(range(at))
    assert eventually(lambda: worker.ready)
    with pytest.raises(ArdiffError, match=type(error).__name__) as caught:
        worker.take()
    assert caught.value.__cause__ is error and decoder.seen == at + 1
    for call in (worker.take, lambda: worker.submit(9)):
        with pytest.raises(StreamClosedError):
            call()
    assert not worker.ready and worker.unread == 0
    worker.close()


def test_a_typed_error_keeps_its_type():
    error = NumericalError("NaN in a picture")
    with DecodeWorker(Explodes(0, error), most_waiting=1) as worker:
        worker.submit(0)
        with pytest.raises(NumericalError) as caught:
            worker.take()
    assert caught.value is error


def test_a_submitter_that_waits_hears_of_the_failure_and_the_reader_gets_it():
    gate, error = Gate(), ValueError("late")

    def decode(piece: int) -> int:
        gate(piece)
        raise error

    with DecodeWorker(decode, most_waiting=1) as worker:
        worker.submit(0)
        assert eventually(lambda: gate.began == [0])
        worker.submit(1)
        blocked, outcome = in_thread(lambda: worker.submit(2))
        gate.open(1)
        blocked.join(PATIENCE)
        assert outcome == [None]
        with pytest.raises(ArdiffError, match="late"):
            worker.take()


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_a_thread_that_is_gone_is_noticed(monkeypatch, pieces):
    """As after a fork: nobody decodes, and nobody says so."""
    monkeypatch.setattr(decode_worker._Work, "_run", lambda self: None)
    with DecodeWorker(lambda piece: piece, most_waiting=2) as worker:
        for piece in range(pieces):
            worker.submit(piece)
        assert eventually(lambda: worker.ready)
        with pytest.raises(ArdiffError, match="thread"):
            worker.take()
        with pytest.raises(StreamClosedError):
            worker.take()


def test_a_thread_that_dies_under_a_waiting_reader_is_noticed(monkeypatch):
    dies = threading.Event()
    monkeypatch.setattr(decode_worker._Work, "_run", lambda self: dies.wait(PATIENCE))
    with DecodeWorker(lambda piece: piece, most_waiting=2) as worker:
        worker.submit(0)
        reader, outcome = in_thread(worker.take)
        reader.join(0.05)
        assert reader.is_alive()
        dies.set()
        reader.join(PATIENCE)
    assert len(outcome) == 1 and "thread that is gone" in str(outcome[0])


def test_close_drops_what_waits_and_wakes_everyone():
    gate = Gate()
    worker = DecodeWorker(gate, most_waiting=1)
    worker.submit(0)
    assert eventually(lambda: gate.began == [0])
    worker.submit(1)
    waiting = [in_thread(worker.take), in_thread(lambda: worker.submit(2)), in_thread(worker.close)]
    for thread, outcome in waiting[:2]:
        thread.join(PATIENCE)
        assert isinstance(outcome[0], StreamClosedError)
    gate.open(1)
    waiting[2][0].join(PATIENCE)
    worker.close()
    assert gate.began == [0] and worker.unread == 0 and not worker.ready and not decoding_threads()


def test_leaving_the_block_by_an_error_ends_the_thread():
    with pytest.raises(KeyError), DecodeWorker(lambda piece: piece, most_waiting=1) as worker:
        worker.submit(0)
        raise KeyError
    assert not decoding_threads()


def test_a_forgotten_worker_is_collected_and_its_thread_ends():
    worker = DecodeWorker(lambda piece: piece, most_waiting=1)
    worker.submit(0)
    del worker
    gc.collect()
    assert eventually(lambda: not decoding_threads())


def test_who_collects_a_forgotten_worker_does_not_wait_for_its_picture():
    gate = Gate()
    worker = DecodeWorker(gate, most_waiting=1)
    worker.submit(0)
    assert eventually(lambda: gate.began == [0])
    del worker
    gc.collect()
    assert decoding_threads()
    gate.open(1)


def test_dropped_inside_its_own_thread_it_does_not_wait_for_itself():
    holder: list[DecodeWorker[int, int]] = []
    ready = threading.Event()

    def decode(piece: int) -> int:
        assert ready.wait(PATIENCE)
        holder.clear()
        return piece

    holder.append(DecodeWorker(decode, most_waiting=1))
    (thread,) = decoding_threads()
    holder[0].submit(0)
    ready.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_interpreter_leaves_while_the_thread_is_inside_pytorch():
    program = (
        "import torch\n"
        "from ardiff_engine.codec.worker import DecodeWorker\n"
        "def decode(n):\n"
        "    for _ in range(20): torch.ones(n, n) @ torch.ones(n, n)\n"
        "worker = DecodeWorker(decode, 4)\n"
        "for _ in range(4): worker.submit(200)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0 and run.stderr == ""
