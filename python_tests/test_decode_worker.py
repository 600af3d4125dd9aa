# SPDX-License-Identifier: Apache-2.0
"""Decoding in a thread: same bits, same order, bounded; every way it can end reaches the reader."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.codec import worker as decode_worker
from ardiff_engine.codec.worker import DecodeWorker
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import ArdiffError, ConfigError, NumericalError, StreamClosedError
from ardiff_engine.models.titok.codec import FrameDecoder
from ardiff_engine.pipeline import decoding

PATIENCE = 20.0
"""Seconds after which something is taken not to happen. A test that passes never waits that long."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert eventually(lambda: not decoding_threads())


@pytest.fixture(scope="module")
def pipe(tiny_model) -> ade.Pipeline:
    return ade.Pipeline.from_pretrained(tiny_model)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ardiff-decode"]


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


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


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


# --- order and bounds


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


# --- faults


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
        with pytest.raises(ArdiffError, match="thread that is gone"):
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


# --- the end


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
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0 and run.stderr == ""


# --- in the pipeline

OPTIONS = {"num_frames": 10, "num_inference_steps": 4}


def inline(pipe: ade.Pipeline, lag: int, one_by_one: bool, videos: int = 1) -> list[torch.Tensor]:
    """The videos as decoded between the ticks, without a thread; frame by frame, or as they come."""
    solver = DDIM(pipe.schedule, 4, prediction=pipe.prediction)
    engine = ade.Engine(pipe.transformer, solver=solver, max_pages=200)
    streams = [
        engine.submit(ade.Request(num_frames=10, lag=lag, seed=7, noise_stream=i)) for i in range(videos)
    ]
    decoders = [FrameDecoder(pipe.vae) for _ in streams]
    pictures: list[list[torch.Tensor]] = [[] for _ in streams]
    while engine.step():
        for i, stream in enumerate(streams):
            latents = [frame.latent for frame in stream.take_ready()]
            if one_by_one:
                pictures[i] += [decoders[i].push(latent[None]) for latent in latents]
            elif latents:
                pictures[i].append(decoders[i].push(torch.stack(latents)))
    return [torch.cat(frames) for frames in pictures]


@pytest.mark.parametrize("lag", [2, 4])
def test_a_stream_is_decoded_to_the_same_bits(pipe, lag):
    frames = list(pipe.stream(lag=lag, seed=7, **OPTIONS))
    assert [frame.index for frame in frames] == list(range(10))
    assert torch.equal(torch.stack([frame.image for frame in frames]), inline(pipe, lag, True)[0])


def test_frames_that_finish_together_are_decoded_to_the_same_bits(pipe, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_UNREAD", 2)
    options = OPTIONS | {"num_frames": 8}
    call = pipe(lag=0, seed=7, progress=False, **options)
    streamed = torch.stack([frame.image for frame in pipe.stream(lag=0, seed=7, **options)])
    assert torch.equal(call.latents[0], pipe(lag=0, seed=7, progress=False, **options).latents[0])
    one_by_one = torch.cat([FrameDecoder(pipe.vae).push(latent[None]) for latent in call.latents[0]])
    assert torch.equal(streamed, one_by_one)
    assert torch.equal(call.frames[0], FrameDecoder(pipe.vae).push(call.latents[0]))


@pytest.mark.parametrize("videos", [1, 3])
def test_a_call_decodes_to_the_same_bits(pipe, videos):
    out = pipe(lag=2, seed=7, num_videos=videos, progress=False, **OPTIONS)
    assert torch.equal(out.frames, torch.stack(inline(pipe, 2, False, videos)))


def test_ticks_run_while_a_frame_is_decoded(pipe, monkeypatch):
    """The decoder waits for a tick that comes after the frame's own: inline that would never end."""
    ticked = threading.Semaphore(0)
    step, decode = ade.Engine.step, FrameDecoder.push

    def counted(self: ade.Engine) -> bool:
        ticked.release()
        return step(self)

    def late(self: FrameDecoder, latents: torch.Tensor) -> torch.Tensor:
        while ticked.acquire(blocking=False):
            pass
        assert ticked.acquire(timeout=PATIENCE)
        return decode(self, latents)

    monkeypatch.setattr(ade.Engine, "step", counted)
    monkeypatch.setattr(FrameDecoder, "push", late)
    stream = pipe.stream(lag=4, num_inference_steps=4, seed=7)
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    stream.close()


@pytest.mark.parametrize("leave", ["break", "close", "drop", "error"])
def test_a_reader_that_leaves_takes_stream_and_thread_along(pipe, monkeypatch, leave):
    engines: list[ade.Engine] = []
    submit = ade.Engine.submit
    monkeypatch.setattr(ade.Engine, "submit", lambda self, r: engines.append(self) or submit(self, r))
    frames = pipe.stream(num_frames=None, lag=2, num_inference_steps=4)
    if leave == "break":
        for frame in frames:
            if frame.index == 2:
                break
        del frames, frame
    elif leave == "error":
        with pytest.raises(KeyError):
            for _ in frames:
                raise KeyError
        del frames
    else:
        next(frames)
        frames.close() if leave == "close" else None
        del frames
    gc.collect()
    assert not decoding_threads()
    assert engines[0].stats().pages_held == 0 and engines[0].stats().streams_running == 0
    assert not engines[0].step()


def test_a_stream_that_is_never_read_starts_no_thread(pipe):
    frames = pipe.stream(num_frames=None, lag=2, num_inference_steps=4)
    assert not decoding_threads()
    del frames


def decoder_that_fails_at(frame: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decode, seen = FrameDecoder.push, [0]

    def fails(self: FrameDecoder, latents: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        if seen[0] > frame:
            raise RuntimeError("no decoder today")
        return decode(self, latents)

    monkeypatch.setattr(FrameDecoder, "push", fails)
    return seen


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_decoder_that_raises_at_frame_k_ends_the_stream_after_k_frames(pipe, monkeypatch, k):
    expected = inline(pipe, 2, True)[0]
    seen = decoder_that_fails_at(k, monkeypatch)
    frames = []
    with pytest.raises(ArdiffError, match="no decoder today"):
        for frame in pipe.stream(lag=2, seed=7, **OPTIONS):
            frames.append(frame.image)
    assert len(frames) == k and seen[0] == k + 1 and not decoding_threads()
    assert all(torch.equal(image, expected[i]) for i, image in enumerate(frames))


@pytest.mark.parametrize("k", [0, 3])
def test_a_decoder_that_raises_in_a_call_is_a_typed_error(pipe, monkeypatch, k):
    decoder_that_fails_at(k, monkeypatch)
    with pytest.raises(ArdiffError, match="no decoder today"):
        pipe(lag=2, num_videos=2, progress=False, **OPTIONS)


@pytest.mark.parametrize("call", [False, True])
def test_a_dead_thread_ends_pipelines_too(pipe, monkeypatch, call):
    monkeypatch.setattr(decode_worker._Work, "_run", lambda self: None)
    with pytest.raises(ArdiffError, match="thread that is gone"):
        if call:
            pipe(lag=2, progress=False, **OPTIONS)
        else:
            list(pipe.stream(lag=2, **OPTIONS))


def test_frames_finished_before_a_pass_fails_are_read_first(pipe, monkeypatch):
    forward, passes = type(pipe.transformer).forward, [0]

    def fails(self, *args):
        passes[0] += 1
        if passes[0] >= 12:
            raise RuntimeError("out of luck")
        return forward(self, *args)

    expected = inline(pipe, 2, True)[0]
    monkeypatch.setattr(type(pipe.transformer), "forward", fails)
    frames = []
    with pytest.raises(ArdiffError, match="out of luck"):
        for frame in pipe.stream(lag=2, seed=7, **OPTIONS):
            frames.append(frame.image)
    # Frame f is clean after 4 + 2 f ticks, and from the twelfth on no pass went through.
    assert len(frames) == 4
    assert torch.equal(torch.stack(frames), expected[:4])
