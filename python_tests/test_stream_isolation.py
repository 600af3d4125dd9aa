# SPDX-License-Identifier: Apache-2.0
"""What one user does, in callbacks, with tensors or by mistake, never changes what another one gets."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch
from inside import inside
from test_engine import engine_for

from ardiff_engine.engine import Request
from ardiff_engine.errors import ArdiffError, ConfigError, EngineBusyError, StreamClosedError, TensorError


def alone(**options) -> torch.Tensor:
    return engine_for().submit(Request(**({"num_frames": 6, "lag": 2} | options))).result()


def test_cancelling_another_stream_in_a_callback():
    engine = engine_for()
    streams = {}

    def cancel_other(stream):
        if stream.ticks_done == 3:
            streams["other"].cancel()

    streams["first"] = engine.submit(Request(num_frames=6, lag=2, on_step=cancel_other))
    streams["other"] = engine.submit(Request(num_frames=6, lag=2, seed=1))
    bystander = engine.submit(Request(num_frames=6, lag=2, seed=2))
    torch.testing.assert_close(streams["first"].result(), alone(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bystander.result(), alone(seed=2), rtol=1e-5, atol=1e-5)
    assert streams["other"].done and engine.stats().pages_held == 0


def test_an_interrupt_in_a_callback_comes_between_two_passes():
    def interrupt(stream):
        if stream.ticks_done == 2:
            raise KeyboardInterrupt

    engine = engine_for()
    first = engine.submit(Request(num_frames=6, lag=2, on_step=interrupt))
    other = engine.submit(Request(num_frames=6, lag=2, seed=1))
    with pytest.raises(KeyboardInterrupt):
        other.result()
    torch.testing.assert_close(other.result(), alone(seed=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.result(), alone(), rtol=1e-5, atol=1e-5)


def test_a_step_inside_a_step_is_refused():
    engine = engine_for()
    other = engine.submit(Request(num_frames=6, lag=2, seed=1))
    caller = engine.submit(Request(num_frames=6, lag=2, on_step=lambda stream: other.result()))
    torch.testing.assert_close(other.result(), alone(seed=1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArdiffError, match="EngineBusyError|step inside") as caught:
        caller.result()
    assert isinstance(caught.value, EngineBusyError) or isinstance(caught.value.__cause__, EngineBusyError)


def test_a_stream_that_cannot_prepare_fails_alone(monkeypatch):
    engine = engine_for()
    good = engine.submit(Request(num_frames=6, lag=2))
    bad = engine.submit(Request(num_frames=6, lag=2, seed=1))

    def explode(*_):
        raise RuntimeError("no noise today")

    monkeypatch.setattr(inside(bad).noise, "of", explode)
    torch.testing.assert_close(good.result(), alone(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ArdiffError, match="no noise today"):
        bad.result()
    assert engine.stats().pages_held == 0


def test_an_error_of_the_pass_ends_its_streams_and_leaves_the_engine_usable(monkeypatch):
    engine = engine_for()
    stream = engine.submit(Request(num_frames=6, lag=2))
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    with pytest.raises(ArdiffError, match="MemoryError"):
        stream.result()
    assert engine.stats().pages_held == 0 and engine.stats().streams_failed == 1
    monkeypatch.setattr(engine.model, "forward", forward)
    result = engine.submit(Request(num_frames=6, lag=2)).result()
    torch.testing.assert_close(result, alone(), rtol=1e-5, atol=1e-5)


def test_a_reader_may_write_into_its_frames():
    stream = engine_for().submit(Request(num_frames=6, lag=2))
    for frame in stream:
        frame.latent.fill_(99.0)
    torch.testing.assert_close(stream.result(), alone(), rtol=1e-5, atol=1e-5)


def test_tensors_of_the_request_may_be_reused_after_submit():
    noise, prefix = torch.randn(5, 3, 4), torch.randn(2, 3, 4)
    options = {"num_frames": 7, "lag": 2}
    expected = engine_for().submit(Request(latents=noise.clone(), prefix=prefix.clone(), **options)).result()
    stream = engine_for().submit(Request(latents=noise, prefix=prefix, **options))
    noise.zero_()
    prefix.zero_()
    assert torch.equal(stream.result(), expected)


def test_kept_frames_do_not_keep_their_batch_alive():
    engine = engine_for()
    streams = [engine.submit(Request(num_frames=4, lag=2, seed=i)) for i in range(8)]
    latents = [frame.latent for stream in streams for frame in stream]
    gc.collect()
    assert all(latent.untyped_storage().nbytes() == latent.nbytes for latent in latents)


def test_iterating_after_result_gives_the_frames_that_were_not_read():
    stream = engine_for().submit(Request(num_frames=6, lag=2, max_ahead=2))
    reader = iter(stream)
    assert next(reader).index == 0
    stream.result()
    assert [frame.index for frame in reader] == [1, 2, 3, 4, 5]


def test_cancelling_inside_the_loop_ends_it():
    stream = engine_for().submit(Request(num_frames=6, lag=2))
    indices = []
    for frame in stream:
        indices.append(frame.index)
        stream.cancel()
    assert indices == [0]
    with pytest.raises(StreamClosedError):
        stream.result()


def test_no_frame_is_lost_between_two_threads():
    engine = engine_for(max_pages=40)
    streams = [engine.submit(Request(num_frames=60, lag=2, seed=i)) for i in range(4)]
    worker = threading.Thread(target=lambda: [None for _ in iter(engine.step, False)])
    worker.start()
    seen: list[list[int]] = [[] for _ in streams]
    while worker.is_alive() or any(stream.frames_ready for stream in streams):
        for stream, indices in zip(streams, seen, strict=True):
            indices += [frame.index for frame in stream.take_ready()]
    worker.join()
    assert seen == [list(range(60))] * 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lag": 2.5}, ConfigError),
        ({"num_frames": "6"}, ConfigError),
        ({"guidance_scale": "2"}, ConfigError),
        ({"guidance_scale": float("nan")}, ConfigError),
        ({"generator": [torch.Generator()]}, ConfigError),
        ({"condition": "a"}, TensorError),
        ({"prefix": np.zeros((2, 3, 4), dtype=np.int64)}, TensorError),
        ({"prefix": torch.full((1, 3, 4), 1e300, dtype=torch.float64)}, ArdiffError),
    ],
)
def test_mistakes_are_refused_before_they_reach_the_engine(options, error):
    engine = engine_for()
    with pytest.raises(error):
        engine.submit(Request(**({"num_frames": 6, "lag": 2} | options)))
    assert engine.pool.manager.unpromised == 100 and not engine.step()


def test_numbers_and_arrays_of_numpy_are_welcome():
    prefix = np.random.default_rng(0).standard_normal((2, 3, 4))
    options = {"num_frames": np.int64(6), "lag": np.int32(2), "seed": np.int64(3)}
    own = engine_for().submit(Request(prefix=prefix, **options)).result()
    plain = (
        engine_for().submit(Request(6, 2, seed=3, prefix=torch.tensor(prefix, dtype=torch.float32))).result()
    )
    assert torch.equal(own, plain)


def test_a_memory_that_is_no_policy_is_refused():
    with pytest.raises(ConfigError, match="RecomputedWindow"):
        engine_for(memory=16)
