# SPDX-License-Identifier: Apache-2.0
"""Pipelines that decode in a thread: the bits of decoding in line, and every way to end."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from helpers.waiting import decoding_threads, eventually

import ardiff_engine as ade
from ardiff_engine.codec import worker as decode_worker
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import ArdiffError
from ardiff_engine.models.titok.codec import FrameDecoder
from ardiff_engine.pipeline import decoding


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert eventually(lambda: not decoding_threads())


@pytest.fixture(scope="module")
def pipe(tiny_model) -> ade.Pipeline:
    return ade.Pipeline.from_pretrained(tiny_model)


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
    ticked, leaves = threading.Semaphore(0), threading.Event()
    step, decode = ade.Engine.step, FrameDecoder.push

    def counted(self: ade.Engine) -> bool:
        ticked.release()
        return step(self)

    def late(self: FrameDecoder, latents: torch.Tensor) -> torch.Tensor:
        while ticked.acquire(blocking=False):
            pass
        assert eventually(lambda: leaves.is_set() or ticked.acquire(blocking=False))
        return decode(self, latents)

    monkeypatch.setattr(ade.Engine, "step", counted)
    monkeypatch.setattr(FrameDecoder, "push", late)
    stream = pipe.stream(lag=4, num_inference_steps=4, seed=7)
    assert [next(stream).index for _ in range(3)] == [0, 1, 2]
    leaves.set()  # no tick comes any more
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
    with pytest.raises(ArdiffError, match="thread"):
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
