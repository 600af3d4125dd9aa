# SPDX-License-Identifier: Apache-2.0
"""Drafted blocks and foreseen inputs: to the bit what the target makes alone, and given frames as a float64
network of dense attention sees them."""

from __future__ import annotations

import random

import pytest
import torch
from dense_oracle import DenseTransformer, visibility
from test_ar_diffusion import tiny
from test_frame_inputs import ActionVideo, actions
from test_systems_engine import CONFIG

import ardiff_engine as ade
from ardiff_engine import ops, plan
from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, LatentFrame, Request
from ardiff_engine.errors import ArdiffError, ConfigError, NumericalError, PlanError, TensorError
from ardiff_engine.memory import Full, Placed, RecomputedWindow, Window
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.purposes import Purpose
from ardiff_engine.speculation import Drafted, Foreseen, at_least

SCHEDULE = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
TARGET, DRAFT = (solvers.DDIM(SCHEDULE, num_inference_steps=steps) for steps in (4, 2))
BACK = Window(4, sink=1, back=4)
CONTEXT = torch.randn(5, 12, generator=torch.Generator().manual_seed(7))


def network():
    return tiny("separate_norm", "temporal_causal", "rope", num_frames=16)


def stream(solver=TARGET, memory=BACK, model=None, **options):
    engine = Engine(model or network(), solver=solver, memory=memory, max_pages=200)
    asked = {"num_frames": None, "plan": plan.blocks(2), "condition": CONTEXT, "seed": 3, "max_ahead": 1}
    return engine.submit(Request(**(asked | options)))


def alone(memory=BACK, frames: int = 10, **options) -> torch.Tensor:
    return stream(memory=memory, num_frames=frames, max_ahead=None, **options).result()


def test_refused_drafts_leave_the_video_of_the_target_alone() -> None:
    video = Drafted(stream(), stream(DRAFT), lambda frames: False, num_frames=10)
    assert torch.equal(video.result(), alone())
    assert (video.accepted, video.refused) == (0, 4)


def test_accepted_drafts_are_the_video_of_the_draft() -> None:
    video = Drafted(stream(), stream(DRAFT), lambda frames: True, num_frames=10, blocks_made=0)
    drafts = stream(DRAFT, num_frames=10, max_ahead=None).result()
    assert torch.equal(video.result(), drafts) and video.accepted == 5


def dense_video(choices: list[bool], noise: torch.Tensor) -> torch.Tensor:
    """Block by block, each with the steps of the draft or of the target, over the clean frames before."""
    model = network()
    dense, x = DenseTransformer(model), noise.double()

    def sees(query: int, key: int) -> bool:
        stop = 2 * (query // 2) + 2
        return key < stop and (key >= stop - 4 or key < 1)

    for number, drafted in enumerate(choices):
        solver, block = DRAFT if drafted else TARGET, range(2 * number, 2 * number + 2)
        frames = block.stop
        visible = visibility(model.config, frames, sees)
        for level in range(solver.num_steps):
            levels = [level if f in block else solver.num_steps for f in range(frames)]
            out = dense(x[:frames], solver.timesteps[levels], CONTEXT.double(), visible)
            p, q, a, b = solver.coefficients[level, :4]
            for f in block:
                x[f] = a * x[f] + b * (p * x[f] + q * out[f])
    return x


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_video_is_that_of_the_dense_network(seed: int) -> None:
    """Given blocks are seen by both streams as frames of their own, whoever made them."""
    choices = [False, *random.Random(seed).choices([True, False], k=4)]
    waiting = iter(choices[1:])
    target, draft = stream(), stream(DRAFT)
    video = Drafted(target, draft, lambda frames: next(waiting), num_frames=10).result()
    keys = torch.tensor([[3, 0, frame, Purpose.INITIAL, 0] for frame in range(10)])
    channels = network().config.channels
    noise = ops.philox_normal(keys, 3 * channels).reshape(10, 3, channels)
    want = dense_video(choices, noise)
    assert float((video - want).norm() / want.norm()) < 1e-5
    other = dense_video([not choice for choice in choices], noise)
    assert float((video - other).norm() / other.norm()) > 1e-2
    for own in (target, draft):
        stats = own.engine.stats()
        assert own.done and stats.pages_held == stats.pages_promised == 0


def test_a_given_block_is_a_frame_like_any_other() -> None:
    """Whatever the memory, giving the frames that the stream has made itself changes nothing."""
    want = alone(frames=8)
    for memory in (BACK, Full(), RecomputedWindow(6), Window(4, clean=False, back=4), Window(4)):
        want = alone(memory, 8)
        own = stream(memory=memory, num_frames=8, max_ahead=None)
        while own.frames_ready < 4:
            own.engine.step(1)
        own.rollback(2, want[2:4])
        assert own.frames_ready == 2
        got = own.result()
        assert torch.equal(got[:4], want[:4])
        # Windows without room to go back compute K/V anew, and those without clean K/V have others here.
        if memory in (BACK, Full(), RecomputedWindow(6)):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(got).all()


def test_bad_drafts_are_refused_and_change_nothing() -> None:
    own = stream(num_frames=8, max_ahead=None)
    while own.frames_ready < 4:
        own.engine.step(1)
    good = torch.zeros(2, 3, network().config.channels)
    for frame, given, error in [
        (2, good[:1], PlanError),
        (2, good[:, :2], TensorError),
        (2, good * float("nan"), NumericalError),
        (2, torch.zeros(6, *good.shape[1:]), ConfigError),
        (6, good, ConfigError),
        (2, "frames", TensorError),
    ]:
        with pytest.raises(error):
            own.rollback(frame, given)
    assert torch.equal(own.result(), alone(frames=8))


def test_streams_that_are_no_pair_are_refused() -> None:
    for target, draft in [
        (stream(), stream(plan=plan.blocks(1))),
        (stream(num_frames=8), stream(num_frames=8)),
        (stream(), stream(prefix=torch.zeros(2, 3, network().config.channels))),
    ]:
        with pytest.raises(ConfigError, match="streams"):
            Drafted(target, draft, lambda frames: True)
    with pytest.raises(ConfigError, match="judge"):
        Drafted(stream(), stream(DRAFT), "judge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="endless"):
        Drafted(stream(), stream(DRAFT), lambda frames: True).result()
    own = stream(memory=Window(4), max_ahead=None)
    while own.frames_ready < 8:
        own.engine.step(1)
    with pytest.raises(PlanError, match="back"):
        own.rollback(2, torch.zeros(2, 3, network().config.channels))


def test_the_worst_frame_decides() -> None:
    frames = [LatentFrame(i, torch.full((1,), float(i)), 0.0) for i in (3, 1, 2)]
    assert at_least(lambda frame: float(frame.latent), 1.0)(frames)
    assert not at_least(lambda frame: float(frame.latent), 1.5)(frames)


# --- inputs that are guessed

WIND = actions(40)["wind"]
PRESSED = [0, 0, 0, 1, 1, 0, 2, 2, 2, 2, 2, 1, 0, 0]
HELD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 2.0]])


def player(engine: Engine, ahead: int = 4, **options) -> Foreseen:
    inputs = {"wind": lambda frame: WIND[frame]}
    asked = {"num_frames": None, "plan": plan.blocks(1), "seed": 5, "frame_inputs": inputs}
    return Foreseen(engine, Request(**(asked | options)), "action", HELD[0], ahead=ahead)


def action_engine(memory=None, model=None) -> Engine:
    return Engine(
        model or ActionVideo(),
        solver=solvers.DDIM(ade.NoiseSchedule.sqrt_linear(), num_inference_steps=3),
        memory=memory or Window(3, back=4),
        max_pages=128,
    )


def known(memory=None) -> torch.Tensor:
    inputs = {"wind": WIND[: len(PRESSED)], "action": HELD[torch.tensor(PRESSED)]}
    request = Request(len(PRESSED), plan=plan.blocks(1), seed=5, frame_inputs=inputs)
    return action_engine(memory).submit(request).result()


@pytest.mark.parametrize("steps", [0, 2, 5, 100])
def test_foreseen_frames_are_those_of_known_inputs(steps: int) -> None:
    """However far the engine has gone ahead when the player speaks."""
    engine = action_engine()
    game, frames = player(engine), []
    for pressed in PRESSED:
        for _ in range(steps):
            engine.step(1)
        frames.append(game.next(HELD[pressed]).latent)
    assert torch.equal(torch.stack(frames), known())
    if steps == 100:
        changes = sum(a != b for a, b in zip([0, *PRESSED], PRESSED, strict=False))
        assert (game.hits, game.misses) == (len(PRESSED) - changes, changes)
    game.close()
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def test_foreseen_while_the_engine_runs_in_a_thread_of_its_own() -> None:
    engine = action_engine()
    with engine.running():
        game = player(engine)
        frames = [game.next(HELD[pressed]).latent for pressed in PRESSED]
        game.close()
    assert torch.equal(torch.stack(frames), known())


def test_what_cannot_be_foreseen_is_refused() -> None:
    engine = action_engine()
    for options in ({"num_frames": 9}, {"max_ahead": 3}, {"plan": plan.blocks(2)}, {"ahead": 0}):
        with pytest.raises(ConfigError):
            player(engine, **options)
    with pytest.raises(ConfigError, match="jump"):
        Foreseen(engine, Request(None), "jump", HELD[0])
    game = player(engine)
    game.next(HELD[1])
    for value in (HELD, [1.0], "left", [float("nan"), 0.0]):
        with pytest.raises(ArdiffError):
            game.next(value)
    game.next(HELD[1])
    game.close()
    assert engine.stats().pages_held == engine.stats().pages_promised == 0


def test_two_networks_share_a_video(model=None) -> None:
    """A small network drafts for another one."""
    torch.manual_seed(0)
    wide, narrow = WanTransformer(CONFIG).eval(), WanTransformer(CONFIG).eval()
    solver = solvers.Renoise(ade.FlowSchedule(5.0), [1000, 500])
    condition = torch.randn(5, 10)
    options = {"solver": solver, "memory": Placed(Window(4, back=4), "window"), "size": (2, 4)}
    options |= {"condition": condition}
    refused = []

    def judge(frames) -> bool:
        assert [frame.index % 2 for frame in frames] == [0, 1]
        refused.append(frames[0].index)
        return len(refused) % 2 == 0

    target, draft = (
        stream(solver, options["memory"], own, size=(2, 4), condition=condition) for own in (wide, narrow)
    )
    video = Drafted(target, draft, judge, num_frames=10).result()
    assert refused == [2, 4, 6, 8] and torch.isfinite(video).all()
    expected = stream(
        solver, options["memory"], wide, size=(2, 4), condition=condition, num_frames=10, max_ahead=None
    ).result()
    assert torch.equal(video[:4], expected[:4]) and not torch.equal(video[4:6], expected[4:6])
