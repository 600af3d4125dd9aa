# SPDX-License-Identifier: Apache-2.0
"""LongLive 2's whole loop by the engine: cuts that pin a block, and a prompt for every shot."""

from __future__ import annotations

import pytest
import torch
from test_wan_transformer import error, official

import ardiff_engine as ade
from ardiff_engine.memory import Shots, Window
from ardiff_engine.plan import blocks


def memory_of(config: dict, starts: tuple[int, ...]) -> Shots:
    # The official window counts its sink.
    sink, late = config["sink"], config["shot_clean_recache"]
    return Shots(
        Window(config["window"] - sink, sink),
        starts,
        pin=config["block"] if config["multi_shot_sink"] else 0,
        offset=int(config["multi_shot_rope_offset"]),
        carried=0 if late else None,
        late=late,
        positions="window" if config["use_relative_rope"] else None,
    )


@pytest.mark.parametrize("neighbour", [False, True])
@pytest.mark.parametrize("name", ["shots", "recache"])
def test_every_shot_has_a_prompt(name: str, neighbour: bool) -> None:
    model, golden, config = official(f"x_longlive2_{name}")
    shots, size, noise = golden["shots"].tolist(), config["block"], golden["noise"][0]
    starts = {size * i: shot for i, shot in enumerate(shots) if i and shot != shots[i - 1]}
    solver = ade.solvers.UniPC(ade.FlowSchedule(shift=config["shift"]), config["steps"])
    assert solver.timesteps[: solver.num_steps].tolist() == golden["scheduler_timesteps"].tolist()
    memory = memory_of(config, tuple(starts))
    engine = ade.Engine(model, solver=solver, memory=memory, plan=blocks(size), max_pages=100)
    request = ade.Request(
        num_frames=len(noise), size=tuple(noise.shape[2:]), condition=golden["text_0"][0], latents=noise
    )
    stream = engine.submit(request)
    if neighbour:
        engine.submit(request)
    reader = iter(stream)
    for frame in range(len(noise)):
        if frame in starts:
            receipt = stream.set_condition(golden[f"text_{starts[frame]}"][0])
            assert (receipt.first_frame, receipt.recommitted) == (frame, ())
        next(reader)
    assert error(stream.result(), golden["latents"][0]) <= 1e-5


def test_the_next_prompt_is_the_last_one_given() -> None:
    """Between the last step of a block and the pass that stores it: to the bit the last prompt, and forks,
    pauses and going back on the way there change nothing."""
    model, golden, config = official("x_longlive2_shots")
    noise, prompts = golden["noise"][0][:6], [golden[f"text_{n}"][0] for n in range(3)]
    solver = ade.solvers.UniPC(ade.FlowSchedule(shift=config["shift"]), 2)

    def made(change) -> torch.Tensor:
        engine = ade.Engine(model, solver=solver, memory=Window(4), plan=blocks(2), max_pages=100)
        size = tuple(noise.shape[2:])
        stream = engine.submit(
            ade.Request(num_frames=len(noise), size=size, condition=prompts[0], latents=noise)
        )
        for _ in range(2):
            engine.step()
        return change(stream).result()

    def once(stream: ade.Stream) -> ade.Stream:
        stream.set_condition(prompts[1])
        return stream

    def twice(stream: ade.Stream) -> ade.Stream:
        stream.set_condition(prompts[2])
        return once(stream)

    def by_a_fork(stream: ade.Stream) -> ade.Stream:
        fork = once(stream).fork()
        stream.set_condition(prompts[2], effect="recommit")
        fork.suspend()
        fork.engine.step()
        fork.resume()
        return fork

    def by_going_back(stream: ade.Stream) -> ade.Stream:
        once(stream).rollback(2)
        return stream

    expected = made(once)
    for change in (twice, by_a_fork):
        assert torch.equal(made(change), expected)
    assert torch.equal(made(by_going_back)[:2], expected[:2])
    recommitted = made(lambda stream: (stream.set_condition(prompts[1], effect="recommit"), stream)[1])
    assert error(recommitted[2:], expected[2:]) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("neighbour", [False, True])
def test_a_picture_within_the_first_block(neighbour: bool) -> None:
    """The given frame is fed clean beside the other one of its block; places count half."""
    model, golden, config = official("x_longlive2_relative_i2v")
    assert model.config.time_scale == config["t_scale"] == 0.5
    noise, image, size = golden["noise"][0], golden["image"][0], config["block"]
    solver = ade.solvers.UniPC(ade.FlowSchedule(shift=config["shift"]), config["steps"])
    rule = blocks(size, given_within=True)
    engine = ade.Engine(model, solver=solver, memory=memory_of(config, ()), plan=rule, max_pages=100)
    request = ade.Request(
        num_frames=len(noise),
        size=tuple(noise.shape[2:]),
        condition=golden["text_0"][0],
        prefix=image,
        latents=noise[1:],
    )
    stream = engine.submit(request)
    if neighbour:
        engine.submit(request)
    assert error(stream.result(), golden["latents"][0]) <= 1e-5
    calls = golden["calls"].tolist()
    assert golden["t_0"][0].tolist()[: len(image)] == [0] and calls[0][:2] == [0, size]
