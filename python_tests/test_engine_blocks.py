# SPDX-License-Identifier: Apache-2.0
"""Blocks and tracks in the engine: against a dense model under the block's mask, tick by tick, and bit for
bit alone and together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from dense_oracle import plain_plan
from inside import inside
from test_ar_diffusion import tiny

from ardiff_engine import plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, OutOfPagesError, PlanError
from ardiff_engine.memory import Full, MemoryPolicy, PerLevel, Placed, Ranges, RecomputedWindow, Window
from ardiff_engine.memory.view import Fed, Run, View
from ardiff_engine.plan import Now, Plan, Rule, Tick

SCHEDULE = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
S4, S3, S2 = (solvers.DDIM(SCHEDULE, num_inference_steps=steps) for steps in (4, 3, 2))
SETS = plan.sets([[0], [1, 4, 5, 8], [2, 3], [6, 7]])

Sees = Callable[[Plan], Callable[[int, int, int], bool]]


def causal(ours: Plan) -> Callable[[int, int, int], bool]:
    return lambda q, k, n: k < ours.block(q).stop


def banded(size: int, sink: int) -> Sees:
    """Frames of a block share their window."""

    def of(ours: Plan) -> Callable[[int, int, int], bool]:
        def sees(q: int, k: int, n: int) -> bool:
            stop = ours.block(q).stop
            return k < stop and (k >= stop - size or k < sink)

        return sees

    return of


def joint(ours: Plan) -> Callable[[int, int, int], bool]:
    """A frame that moves sees all that have started; then it carries what was finished when it was."""

    def sees(q: int, k: int, n: int) -> bool:
        if q < ours.prefix:
            return k <= q
        end = next((m for m in range(n + 1) if ours.level(q, m) == ours.steps(q)), None)
        return any(k in run for run in (ours.now(n).started if end is None else ours.now(end).finished))

    return sees


def rolling(size: int, sink: int) -> Sees:
    """Blocks in flight see each other and share a window; then each is stored under a window of its own."""

    def of(ours: Plan) -> Callable[[int, int, int], bool]:
        def sees(q: int, k: int, n: int) -> bool:
            moves = ours.level(q, n) < ours.steps(q)
            stop = ours.newest(n) + 1 if moves else ours.block(q).stop
            return k < stop and (k >= stop - size or k < sink)

        return sees

    return of


CASES: dict[str, tuple[Rule, tuple[solvers.Solver, ...], int, int, MemoryPolicy, Sees]] = {
    "blocks": (plan.blocks(3), (S4,), 9, 0, Full(), causal),
    "first of 1, steps 4/3/2": (plan.blocks(3, first=1), (S4, S3, S2), 13, 0, Full(), causal),
    "given block": (plan.blocks(3, first=1), (S4, S2), 10, 4, Full(), causal),
    "window": (plan.blocks(3), (S4,), 15, 0, Window(6), banded(6, 0)),
    "window, sink of a block": (plan.blocks(3), (S3, S2), 15, 0, Window(6, sink=3), banded(6, 3)),
    "window, part of a block": (plan.blocks(3), (S3,), 15, 0, Window(5, sink=1), banded(5, 1)),
    "given blocks, window": (plan.blocks(2), (S3,), 14, 8, Window(4), banded(4, 0)),
    "lag over blocks": (plan.blocks(2, first=3, lag=2), (S4,), 9, 0, Full(), causal),
    "lag over blocks, window": (plan.blocks(2, lag=2), (S4,), 12, 0, Window(6), banded(6, 0)),
    "staged": (plan.staged(2, 2), (S4,), 8, 2, Full(), causal),
    "rolling": (plan.rolling(4, 2), (S4,), 14, 0, Window(10, sink=2, joint=True), rolling(10, 2)),
    "pyramid": (plan.pyramid(0.5), (S4,), 6, 1, Full(), causal),
    # A block at level s reads earlier ones at level s + 1, where they stand when it moves.
    "stage by stage": (plan.stage_major(2), (S4,), 8, 0, PerLevel(Full()), causal),
    "stage by stage, window": (plan.stage_major(2), (S3,), 8, 0, PerLevel(Window(8)), causal),
    "ranges as wide as a window": (plan.staged(2), (S4,), 8, 0, Ranges((4, 4), 4), banded(4, 0)),
    "sets": (SETS, (S3,), 9, 1, Full(joint=True), joint),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tick_is_that_of_the_dense_model_under_the_block_mask(name: str) -> None:
    rule, tracks, frames, given, memory, sees = CASES[name]
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)
    config, generator = model.config, torch.Generator().manual_seed(frames)
    cell = (config.tokens_per_frame, config.channels)
    noise = torch.randn(frames - given, *cell, generator=generator)
    prefix = torch.randn(given, *cell, generator=generator) if given else None
    condition = torch.randn(config.context_tokens, config.context_dim, generator=generator)
    seen: list[dict[int, torch.Tensor]] = []
    request = Request(
        frames,
        condition=condition,
        latents=noise,
        prefix=prefix,
        plan=rule,
        solver=tracks,
        on_step=lambda stream: seen.append({f: x.clone() for f, x in stream.latents.items()}),
    )
    engine = Engine(model, solver=S4, memory=memory, max_pages=200)
    stream = engine.submit(request)
    result = stream.result()
    ours = rule.plan(frames, tuple(own.num_steps for own in tracks), given)
    with torch.no_grad():
        ticks = list(plain_plan(model, tracks, noise, condition, ours, sees(ours), prefix=prefix))
    assert len(ticks) <= len(seen)
    for n, (own, expected) in enumerate(zip(seen[len(seen) - len(ticks) :], ticks, strict=True)):
        for frame, latent in own.items():
            error = float((latent - expected[frame]).norm() / expected[frame].norm())
            assert error < 1e-5, f"tick {n}, frame {frame}: relative error {error:.2e}"
    assert float((result - ticks[-1]).norm() / ticks[-1].norm()) < 1e-5
    assert engine.stats().pages_held == 0


@pytest.mark.parametrize("memory", [Window(6, sink=3), RecomputedWindow(6)])
def test_an_endless_video_of_blocks_begins_like_a_long_one(memory: MemoryPolicy) -> None:
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)

    def latents(frames: int | None) -> list[torch.Tensor]:
        engine = Engine(model, solver=S4, memory=memory, max_pages=200)
        stream = engine.submit(Request(frames, plan=plan.blocks(3), solver=(S4, S2), seed=1))
        return [frame.latent for frame in islice(stream, 15)]

    for endless, finite in zip(latents(None), latents(15), strict=True):
        assert torch.equal(endless, finite)


def test_a_recomputed_window_of_blocks_is_the_dense_model_on_the_window() -> None:
    """One block at a time: in each, the window is a video of its own, whose older blocks are given."""
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)
    noise = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
    condition = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    engine = Engine(model, solver=S3, memory=RecomputedWindow(6), max_pages=200)
    request = Request(12, condition=condition, latents=noise, plan=plan.blocks(3))
    result = engine.submit(request).result()
    for stop in range(3, 13, 3):
        start = max(0, stop - 6)
        ours = plan.blocks(3).plan(stop - start, (3,), stop - 3 - start)
        given = result[start : stop - 3] if stop - 3 > start else None
        with torch.no_grad():
            window = plain_plan(
                model, [S3], noise[stop - 3 : stop], condition, ours, causal(ours), prefix=given
            )
            torch.testing.assert_close(
                result[stop - 3 : stop].double(), list(window)[-1][-3:], rtol=1e-5, atol=1e-5
            )


@dataclass(frozen=True)
class Faint(Full):
    """As Krea Realtime: what is neither in the first block nor in the own one counts less."""

    def view(self, fed: Fed, now: Now) -> View:
        first, start, stop = 3, fed.block.start, fed.block.stop
        runs = Run(0, first), Run(first, start, bias=math.log(0.3)), Run(max(start, first), stop)
        return tuple(run for run in runs if run.first < run.stop)


def faint(q: int, k: int, n: int) -> float:
    if k >= (q // 3 + 1) * 3:
        return -math.inf
    return 0.0 if k < 3 or k // 3 == q // 3 else math.log(0.3)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_bias_reaches_the_logits_of_the_run_that_has_it(cuda_graphs: bool) -> None:
    """Also over padded buffers, as on a GPU."""
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)
    noise = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
    condition = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    engine = Engine(model, solver=S3, memory=Faint(), max_pages=200, cuda_graphs=cuda_graphs)
    options = {"condition": condition, "latents": noise, "plan": plan.blocks(3)}
    streams = [engine.submit(Request(12, **options)), engine.submit(Request(12, memory=Full(), **options))]
    ours = plan.blocks(3).plan(12, (3,))
    for stream, sees in zip(streams, (faint, causal(ours)), strict=True):
        with torch.no_grad():
            *_, expected = plain_plan(model, [S3], noise, condition, ours, sees)
        torch.testing.assert_close(stream.result().double(), expected, rtol=1e-5, atol=1e-5)


MIXED = [
    Request(9, plan=plan.blocks(3), seed=1),
    Request(13, plan=plan.blocks(3, first=1), solver=(S4, S3, S2), seed=2, guidance_scale=2.0),
    Request(8, plan=plan.blocks(2, lag=2), seed=3, memory=Window(4)),
    Request(9, plan=SETS, seed=4, memory=Full(joint=True)),
    Request(5, lag=1, seed=5, guidance_scale=0.5),
    Request(6, plan=plan.pyramid(0.5), seed=6, solver=S3),
    Request(6, plan=plan.stage_major(2), seed=7, memory=PerLevel(Full())),
    Request(6, plan=plan.stage_major(2, pipelined=True), seed=7, memory=PerLevel(Full())),
    Request(6, plan=plan.blocks(2), seed=8, memory=PerLevel(Window(4), "same")),
    Request(6, plan=plan.blocks(2), seed=9, memory=Window(4, clean=False), solver=(S4, S2)),
    Request(6, plan=plan.staged(2), seed=10, memory=Ranges((3, 2), 1)),
]


def test_alone_and_together_are_the_same_bits() -> None:
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)
    alone = [Engine(model, solver=S4, memory=Full(), max_pages=200).submit(own).result() for own in MIXED]
    engine = Engine(model, solver=S4, memory=Full(), max_pages=400)
    streams = [engine.submit(own) for own in MIXED]
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)
    # Stages one after the other, or one diagonal of them per tick: the same cells read the same copies.
    torch.testing.assert_close(alone[6], alone[7], rtol=1e-5, atol=1e-5)


def test_frames_that_finish_in_any_order_are_delivered_in_the_order_of_the_video() -> None:
    engine = Engine(tiny("separate_norm", "temporal_causal", "rope"), solver=S3, memory=Full(joint=True))
    stream = engine.submit(Request(4, plan=plan.sets([[0, 3], [1], [2]])))
    ready = []
    while engine.step():
        ready.append(stream.frames_ready)
    # After 3 steps frames 0 and 3 are finished, and frame 3 waits for frames 1 and 2.
    assert ready == [0, 0, 1, 1, 1, 2, 2, 2, 4]
    assert [frame.index for frame in stream] == [0, 1, 2, 3]


@pytest.mark.parametrize("frame", [0, 3, 6])
def test_rollback_goes_back_to_a_block_and_keeps_its_track(frame: int) -> None:
    model = tiny("separate_norm", "temporal_causal", "rope")

    def submitted(**options):
        engine = Engine(model, solver=(S4, S3, S2), memory=Full(), max_pages=200)
        return engine.submit(Request(9, plan=plan.blocks(3), seed=7, **options))

    expected, stream = submitted().result(), submitted()
    for _ in range(8):
        stream.engine.step(1)
    with pytest.raises(PlanError, match="3 or 6"):
        stream.rollback(4)
    if frame <= 6 - 3 * (inside(stream).feeder.oldest_unfinished < 6):
        stream.rollback(frame)
    torch.testing.assert_close(stream.result(), expected, rtol=1e-5, atol=1e-5)


def test_a_video_grows_by_blocks() -> None:
    model = tiny("separate_norm", "temporal_causal", "rope")
    expected = (
        Engine(model, solver=(S4, S2)).submit(Request(9, plan=plan.blocks(3), memory=Window(6))).result()
    )
    for after in (2, 6):
        engine = Engine(model, solver=(S4, S2))
        stream = engine.submit(Request(6, plan=plan.blocks(3), memory=Window(6)))
        for _ in range(after - 1):
            engine.step(1)
        with pytest.raises(PlanError, match="6 or 9"):
            stream.extend(2)
        stream.extend(3)
        torch.testing.assert_close(stream.result(), expected, rtol=1e-5, atol=1e-5)


def explicit(ticks: list[Tick], **options) -> Request:
    return Request(3, plan=plan.explicit(ticks, 3, 2, **options))


REFUSED: dict[str, tuple[type[Exception], Callable[[], Request]]] = {
    "not whole blocks": (PlanError, lambda: Request(10, plan=plan.blocks(3))),
    "not whole blocks given": (
        PlanError,
        lambda: Request(9, plan=plan.blocks(3), prefix=torch.zeros(2, 3, 4)),
    ),
    "window cuts a block": (PlanError, lambda: Request(9, plan=plan.blocks(3), memory=RecomputedWindow(4))),
    "window smaller than a block": (PlanError, lambda: Request(9, plan=plan.blocks(3), memory=Window(2))),
    "any order in a window": (PlanError, lambda: Request(9, plan=SETS, memory=Window(9))),
    "any order in a recomputed window": (
        PlanError,
        lambda: Request(9, plan=SETS, memory=RecomputedWindow(9)),
    ),
    "endless sets": (PlanError, lambda: Request(None, plan=SETS)),
    "tracks for a lag": (PlanError, lambda: Request(9, solver=(S4, S3))),
    "a tick that moves nothing": (PlanError, lambda: explicit([Tick(0, (), ())])),
    "a plan that ends too early": (PlanError, lambda: explicit([Tick(0, (0,), (0,))])),
    "a plan of another video": (PlanError, lambda: Request(4, plan=plan.lag(5, 4, 2))),
    "given frames at all levels": (
        ConfigError,
        lambda: Request(8, plan=plan.stage_major(2), prefix=torch.zeros(2, 3, 4), memory=PerLevel(Full())),
    ),
    "stages that do not divide the steps": (
        ConfigError,
        lambda: Request(8, plan=plan.staged(2), memory=Ranges((3, 2, 1), 1)),
    ),
    "one frame at two places": (
        PlanError,
        lambda: Request(9, lag=1, memory=Placed(Window(6), "window")),
    ),
    "no plan": (ConfigError, lambda: Request(4, plan="blocks")),
    "a plan and a lag": (ConfigError, lambda: Request(4, plan=plan.blocks(2), lag=2)),
    "no solver": (ConfigError, lambda: Request(4, solver=(S4, 3))),
}


class OfSomebodyElse:
    """A memory that is not of this package, as Full but for what a test changes."""

    chunk, by_level, proven = 16, False, False

    def __init__(self, **changes: Callable) -> None:
        self.__dict__.update(changes)

    def __getattr__(self, name: str) -> object:
        return getattr(Full(), name)

    def begun(self, block: range, now: Now) -> OfSomebodyElse:
        return self

    def stores(self, fed: Fed) -> bool:
        return fed.level == fed.steps


def only_the_last_sees_the_first(fed: Fed, now: Now) -> View:
    own = Run(fed.block.start, fed.block.stop)
    return (Run(0, 3), own) if fed.block.start == 6 else (own,)


def sees_another_copy(fed: Fed, now: Now) -> View:
    return (Run(0, 3, copy=1), Run(fed.block.start, fed.block.stop))


BROKEN = {
    "copy 1 of frame 0": {"view": sees_another_copy},
    "frame 2": {"view": lambda fed, now: (Run(0, fed.block.start + 1),)},
    "itself": {"view": lambda fed, now: (Run(0, 3),)},
    "frame 0": {"view": only_the_last_sees_the_first, "kept": lambda oldest, now: ()},
    "most_frames": {"most_frames": lambda ours: 5},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_memory_that_shows_what_is_not_there_is_refused_before_anything_is_taken(what: str) -> None:
    engine = Engine(tiny("separate_norm", "temporal_causal", "rope"), solver=S4, memory=Full(), max_pages=64)
    with pytest.raises(PlanError, match=what):
        engine.submit(Request(9, plan=plan.blocks(3), memory=OfSomebodyElse(**BROKEN[what])))
    assert engine.stats().pages_promised == 0
    expected = engine.submit(Request(9, plan=plan.blocks(3))).result()
    assert torch.equal(
        engine.submit(Request(9, plan=plan.blocks(3), memory=OfSomebodyElse())).result(), expected
    )


def test_a_subclass_of_a_proven_memory_is_rehearsed() -> None:
    class Copied(Full):
        def view(self, fed: Fed, now: Now) -> View:
            return sees_another_copy(fed, now)

    class Shown(Faint):
        proven = True  # its author says so

    engine = Engine(tiny("separate_norm", "temporal_causal", "rope"), solver=S4, memory=Full(), max_pages=64)
    with pytest.raises(PlanError, match="copy 1 of frame 0"):
        engine.submit(Request(9, plan=plan.blocks(3), memory=Copied()))
    assert engine.stats().pages_promised == 0
    assert Full().proven and Shown().proven and not Faint().proven


def test_joint_is_refused_where_no_frame_sees_later_ones() -> None:
    engine = Engine(tiny(), solver=S4, memory=Full(joint=True))
    with pytest.raises(ConfigError, match="later"):
        engine.submit(Request(4, lag=1))
    assert engine.submit(Request(4, lag=1, memory=Full())).result().shape[0] == 4
    seeing = Engine(tiny(mask="none"), solver=S4, memory=Full(joint=True))
    assert seeing.submit(Request(4, lag=1)).result().shape[0] == 4


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_and_takes_nothing(name: str) -> None:
    kind, request = REFUSED[name]
    engine = Engine(tiny("separate_norm", "temporal_causal", "rope"), solver=S4, memory=Full(), max_pages=64)
    with pytest.raises(kind):
        engine.submit(request())
    stats = engine.stats()
    assert stats.pages_promised == stats.streams_running == 0
    with pytest.raises(OutOfPagesError):
        engine.submit(Request(900, plan=plan.blocks(3)))
