# SPDX-License-Identifier: Apache-2.0
"""Forks, going back, extensions, pauses and new conditions, against videos asked for that way at once."""

from __future__ import annotations

import pytest
import torch
from inside import inside
from test_ar_diffusion import tiny
from test_engine import engine_for

from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError, OutOfPagesError, PlanError, StreamClosedError
from ardiff_engine.memory import Full, RecomputedWindow, Window

MEMORIES = [RecomputedWindow(4), Window(3), Window(3, sink=1), Full()]
LAGS = [0, 1, 2, 4]


def ticks(stream, count: int):
    for _ in range(count):
        stream.engine.step(1)
    return stream


def run(memory=None, **options) -> torch.Tensor:
    return engine_for(memory=memory).submit(Request(**options)).result()


def fits(memory, lag: int, frames: int, prefix: int = 0) -> bool:
    """Whether the window can hold what is in flight (4 steps)."""
    live = min(-(-4 // lag) if lag else frames, frames)
    beside = int(prefix > 0 and isinstance(memory, RecomputedWindow))
    return isinstance(memory, Full) or live + beside <= memory.size


CASES = [(memory, lag) for memory in MEMORIES for lag in LAGS if fits(memory, lag, 9, 1)]


@pytest.mark.parametrize(("memory", "lag"), CASES, ids=str)
@pytest.mark.parametrize("after", [1, 7, 13])
def test_a_fork_makes_the_same_video_and_shares_pages(memory, lag, after):
    options = {"num_frames": 9, "lag": lag, "guidance_scale": 2.0, "seed": 3}
    engine = engine_for(memory=memory)
    parent = ticks(engine.submit(Request(**options)), after)
    if parent.done:
        pytest.skip("finished by then")
    held = engine.stats().pages_held
    child = parent.fork()
    assert engine.stats().pages_held == held
    expected = run(memory, **options)
    assert torch.equal(child.result(), expected) and torch.equal(parent.result(), expected)
    assert engine.stats().pages_held == 0 and engine.stats().pages_promised == 0


@pytest.mark.parametrize("lag", [0, 2, 4])
def test_a_fork_made_in_a_callback_ends_also_after_the_last_pass(lag):
    options = {"num_frames": 4, "lag": lag, "seed": 3}
    engine, children = engine_for(max_pages=1000), []
    parent = engine.submit(Request(**options, on_step=lambda stream: children.append(stream.fork())))
    expected = run(**options)
    assert torch.equal(parent.result(), expected) and len(children) == parent.num_ticks
    while engine.step():
        pass
    assert all(child.state == "finished" for child in children)
    assert all(torch.equal(child.result(), expected) for child in children)
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def test_a_fork_outlives_its_parent_and_takes_other_noise():
    engine = engine_for(memory=Window(3))
    parent = ticks(engine.submit(Request(num_frames=8, lag=4)), 9)
    child = parent.fork(seed=9)
    parent.cancel()
    result, same = child.result(), run(Window(3), num_frames=8, lag=4)
    assert torch.equal(result[:2], same[:2])
    other = run(Window(3), num_frames=8, lag=4, seed=9, prefix=same[:3])
    torch.testing.assert_close(result[2], same[2])
    torch.testing.assert_close(result[3:], other[3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("memory", "lag"), CASES, ids=str)
@pytest.mark.parametrize(("after", "frame"), [(9, 0), (9, 1), (17, 3), (22, 2)])
def test_rollback_goes_on_as_if_the_frames_before_were_given(memory, lag, after, frame):
    if not fits(memory, lag, 9, frame):
        pytest.skip("the window is too small for given frames")
    stream = ticks(engine_for(memory=memory).submit(Request(num_frames=9, lag=lag, seed=5)), after)
    if stream.done or inside(stream).feeder.oldest_unfinished < frame:
        pytest.skip("no such frame by then")
    stream.rollback(frame)
    result = stream.result()
    given = {"prefix": result[:frame]} if frame else {}
    torch.testing.assert_close(
        result, run(memory, num_frames=9, lag=lag, seed=5, **given), rtol=1e-5, atol=1e-5
    )


def test_frames_after_a_rollback_are_delivered_again():
    stream = engine_for().submit(Request(num_frames=6, lag=2))
    reader = iter(stream)
    seen = [next(reader).index for _ in range(4)]
    stream.rollback(2)
    assert seen + [frame.index for frame in reader] == [0, 1, 2, 3, 2, 3, 4, 5]


def test_an_endless_stream_goes_back_as_far_as_its_window():
    stream = engine_for(memory=RecomputedWindow(3)).submit(Request(num_frames=None, lag=4, max_ahead=99))
    ticks(stream, 6 * 4)
    assert inside(stream).feeder.oldest_unfinished == 6
    with pytest.raises(PlanError, match="endless"):
        stream.rollback(3)
    stream.rollback(6)
    with pytest.raises(ConfigError, match="0..6"):
        stream.rollback(7)
    stream.cancel()


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_an_early_extension_is_a_longer_request(lag):
    engine = engine_for(memory=RecomputedWindow(5))
    stream = ticks(engine.submit(Request(num_frames=3, lag=lag)), 2)
    stream.extend(4)
    assert stream.num_frames == 7
    assert torch.equal(stream.result(), run(RecomputedWindow(5), num_frames=7, lag=lag))


@pytest.mark.parametrize("memory", [RecomputedWindow(5), Full(), Window(5)], ids=str)
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_late_extension_continues_the_finished_video(memory, lag):
    stream = engine_for(memory=memory).submit(Request(num_frames=3, lag=lag))
    ticks(stream, {0: 3, 1: 5, 2: 7}[lag])
    stream.extend(1)
    stream.extend(1)
    first = run(memory, num_frames=3, lag=lag)
    expected = run(memory, num_frames=5, lag=lag, prefix=first)
    torch.testing.assert_close(stream.result(), expected, rtol=1e-5, atol=1e-5)


def test_an_extension_that_the_pool_cannot_promise_changes_nothing():
    engine = engine_for(memory=Full(), max_pages=4)
    stream = engine.submit(Request(num_frames=3, lag=4))
    with pytest.raises(OutOfPagesError):
        stream.extend(1)
    assert torch.equal(stream.result(), run(Full(), num_frames=3, lag=4))
    with pytest.raises(StreamClosedError, match="finished"):
        stream.extend(1)
    for frames in (0, 1.5, True):
        with pytest.raises(ConfigError):
            engine.submit(Request(num_frames=2, lag=4)).extend(frames)


@pytest.mark.parametrize(("memory", "lag"), CASES, ids=str)
def test_a_pause_changes_no_bit_and_frees_all_pages(memory, lag):
    options = {"num_frames": 9, "lag": lag, "guidance_scale": 2.0, "condition": torch.ones(5, 12)}
    engine = engine_for(memory=memory)
    stream = ticks(engine.submit(Request(**options)), 3)
    stream.suspend()
    stream.suspend()
    assert engine.stats().pages_held == engine.stats().pages_promised == 0
    other = engine.submit(Request(num_frames=9, lag=lag, seed=8))
    ticks(other, 2)
    assert not torch.equal(engine.pool.k, torch.zeros_like(engine.pool.k))
    stream.resume()
    assert torch.equal(stream.result(), run(memory, **options))


def test_a_full_pool_keeps_a_suspended_stream_as_it_is():
    engine = engine_for(memory=RecomputedWindow(4), max_pages=6)
    stream = ticks(engine.submit(Request(num_frames=6, lag=2)), 5)
    stream.suspend()
    other = engine.submit(Request(num_frames=6, lag=2, seed=1))
    with pytest.raises(OutOfPagesError):
        stream.resume()
    assert stream.state == "suspended"
    other.cancel()
    stream.resume()
    assert torch.equal(stream.result(), run(RecomputedWindow(4), num_frames=6, lag=2))


def conditions(seed: int) -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("memory", [RecomputedWindow(4), Window(3), Window(2, sink=1), Full()], ids=str)
def test_recommit_is_a_video_given_under_the_new_condition(memory):
    """With lag S and two frames, both still in sight."""
    stream = engine_for(memory=memory).submit(Request(num_frames=6, lag=4, condition=conditions(0)))
    ticks(stream, 2 * 4)
    receipt = stream.set_condition(conditions(1), effect="recommit")
    assert receipt.first_frame == 2 and receipt.recommitted == (0, 1) and stream.engine.stats().exact
    result = stream.result()
    expected = run(memory, num_frames=6, lag=4, condition=conditions(1), prefix=result[:2])
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_recommit_reads_nothing_that_was_stored_under_the_old_condition():
    def video(poison: bool) -> torch.Tensor:
        engine = engine_for(memory=Window(3))
        stream = ticks(engine.submit(Request(num_frames=7, lag=4, condition=conditions(0))), 4 * 4)
        assert stream.set_condition(conditions(1), effect="recommit").recommitted == (2, 3)
        assert not engine.stats().exact
        if poison:
            engine.pool.k.fill_(float("nan"))
            engine.pool.v.fill_(float("nan"))
        return stream.result()

    # NaN in rows that no frame fills would meet probabilities of 0: these rows are not written here.
    assert torch.equal(video(False), video(False))
    torch.testing.assert_close(video(True), video(False), rtol=0, atol=0)


@pytest.mark.parametrize("memory", [RecomputedWindow(3), Window(3, sink=1), Full()], ids=str)
def test_reset_is_a_new_video(memory):
    stream = engine_for(memory=memory).submit(Request(num_frames=7, lag=4, condition=conditions(0)))
    ticks(stream, 3 * 4)
    receipt = stream.set_condition(conditions(1), effect="reset")
    assert receipt.first_frame == 3 and receipt.forgotten == range(3)
    later = Window(3) if isinstance(memory, Window) else memory
    expected = run(later, num_frames=4, lag=4, condition=conditions(1), latents=noise(stream, range(3, 7)))
    torch.testing.assert_close(stream.result()[3:], expected, rtol=1e-5, atol=1e-5)


def noise(stream, frames) -> torch.Tensor:
    return torch.stack([inside(stream).noise.of(frame) for frame in frames])


def test_keep_leaves_stored_keys_alone_and_says_that_this_is_not_exact():
    engine = engine_for(memory=Window(3))
    stream = ticks(engine.submit(Request(num_frames=7, lag=4, condition=conditions(0))), 3 * 4 + 1)
    pages = [page for frame in (1, 2) for page in inside(stream).pages.frames[0][frame, 0]]
    before, context = (
        engine.pool.k[:, pages].clone(),
        engine.pool.k[:, inside(stream).pages.context[0]].clone(),
    )
    receipt = stream.set_condition(conditions(1))
    ticks(stream, 1)
    assert receipt.first_frame == 3 and receipt.recommitted == () and not engine.stats().exact
    assert torch.equal(engine.pool.k[:, pages], before)
    assert not torch.equal(engine.pool.k[:, inside(stream).pages.context[0]], context)
    plain = run(Window(3), num_frames=7, lag=4, condition=conditions(0))
    result = stream.result()
    assert torch.equal(result[:3], plain[:3]) and not torch.allclose(result[4:], plain[4:], atol=1e-3)


@pytest.mark.parametrize(("memory", "lag"), CASES, ids=str)
def test_a_new_condition_costs_two_passes_at_most(memory, lag):
    """One that stores what is finished, one that feeds the condition; also where the next tick moves the
    window, after which all is stored again."""
    engine = engine_for(memory=memory)
    for after in range(1, 18):
        stream = ticks(engine.submit(Request(num_frames=9, lag=lag)), after)
        if stream.done:
            break
        done = stream.ticks_done
        stream.set_condition(conditions(1))
        assert ticks(stream, 3).ticks_done > done or stream.done, after
        stream.cancel()


@pytest.mark.parametrize("effect", ["keep", "recommit", "reset"])
def test_a_condition_before_the_first_pass_is_as_if_asked_for(effect):
    stream = engine_for().submit(Request(num_frames=6, lag=2, condition=conditions(0)))
    stream.set_condition(conditions(1), effect=effect)
    assert torch.equal(stream.result(), run(num_frames=6, lag=2, condition=conditions(1)))


def test_a_forks_condition_is_its_own():
    engine = engine_for(memory=Window(3))
    parent = ticks(engine.submit(Request(num_frames=7, lag=2, condition=conditions(0))), 6)
    child = parent.fork()
    child.set_condition(conditions(1), effect="recommit")
    expected = run(Window(3), num_frames=7, lag=2, condition=conditions(0))
    assert not torch.allclose(child.result()[5:], expected[5:], atol=1e-3)
    assert torch.equal(parent.result(), expected)


def test_the_released_mask_takes_a_new_condition_too():
    engine = engine_for(tiny(), memory=Full())
    stream = ticks(engine.submit(Request(num_frames=4, lag=2, condition=conditions(0))), 3)
    stream.set_condition(conditions(1))
    assert engine.stats().exact
    assert torch.isfinite(stream.result()).all()


def test_edits_of_streams_that_have_ended_or_mistakes_are_typed_errors():
    engine = engine_for()
    stream = engine.submit(Request(num_frames=6, lag=2, generator=torch.Generator().manual_seed(0)))
    ticks(stream, 2)
    with pytest.raises(ConfigError, match="generator"):
        stream.fork()
    with pytest.raises(ConfigError, match="effect"):
        stream.set_condition(None, effect="forget")
    stream.suspend()
    for call in (stream.fork, lambda: stream.rollback(0)):
        with pytest.raises(StreamClosedError, match="suspended"):
            call()
    stream.cancel()
    for call in (stream.fork, stream.suspend, stream.resume, lambda: stream.set_condition(None)):
        with pytest.raises(StreamClosedError, match="cancelled"):
            call()


def test_a_resume_that_fails_keeps_the_stream_suspended_and_loses_no_pages(monkeypatch) -> None:
    engine = engine_for(memory=Window(3))
    stream = engine.submit(Request(num_frames=6, lag=2, seed=1))
    for _ in range(5):
        engine.step(1)
    stream.suspend()
    before = engine.stats()
    with monkeypatch.context() as short:
        short.setattr(torch.Tensor, "index_copy_", lambda *_: (_ for _ in ()).throw(MemoryError("short")))
        with pytest.raises(MemoryError):
            stream.resume()
    after = engine.stats()
    assert stream.state == "suspended"
    assert (after.pages_free, after.pages_promised) == (before.pages_free, before.pages_promised)
    stream.resume()
    assert torch.equal(stream.result(), run(Window(3), num_frames=6, lag=2, seed=1))
