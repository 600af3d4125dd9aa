# SPDX-License-Identifier: Apache-2.0
"""Edits of streams with several branches: prompts and scales on the way, forks, rollbacks, pauses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.branched import (
    CASES,
    TEXT,
    W4,
    Branch,
    as_tables,
    engine_of,
    magi,
    network,
    plain_branches,
    prompt,
)
from inside import inside

import ardiff_engine as ade
from ardiff_engine.engine import Request
from ardiff_engine.errors import ConfigError


def test_another_prompt_goes_to_the_branches_that_had_the_first_one() -> None:
    """What a fork with the new prompt does, a stream does that has it from the start."""
    model, old = network(), prompt(1)

    def submitted(condition: torch.Tensor) -> ade.Stream:
        engine = engine_of(model)
        return engine.submit(
            Request(
                4,
                lag=2,
                seed=1,
                branches=[Branch(condition, 3.0), Branch("null", -1.0), Branch(condition, W4)],
            )
        )

    stream = submitted(old)
    stream.set_condition(prompt(2))
    assert torch.equal(stream.result(), submitted(prompt(2)).result())
    with pytest.raises(ConfigError, match="negative"):
        submitted(old).set_condition(old, negative_condition=prompt(3))


@pytest.mark.parametrize(("name", "effect"), [("magi", "keep"), ("history", "recommit")])
def test_another_prompt_on_the_way(name: str, effect: str) -> None:
    """Where K/V are stored without the prompt there is nothing that a new one changes in them."""
    case, model, new = CASES[name], network(), prompt(9)
    engine = engine_of(model)
    stream = engine.submit(case.request())
    for _ in range(6):
        engine.step(1)
    stream.set_condition(new, effect=effect)

    def contexts(n: int) -> list[torch.Tensor]:
        return [new if n >= 6 and own.condition is TEXT else own.condition for own in case.branches]

    expected = case.expected(model, contexts)
    assert float((stream.result() - expected).norm() / expected.norm()) < 1e-5


def test_other_scales_on_the_way() -> None:
    case, model = CASES["magi"], network()
    engine = engine_of(model)
    stream = engine.submit(case.request())
    for _ in range(6):
        engine.step(1)
    fork = stream.fork()
    stronger = [replace(own, weight=[2 * w for w in own.weight]) for own in magi()]
    receipt = stream.set_branches(stronger)
    fork.set_branches(magi())  # the same ones: nothing changes
    for wrong in (magi((1, 0, 2)), magi()[:2], [], [3], [replace(own, weight=[1.0]) for own in magi()]):
        with pytest.raises(ConfigError):
            stream.set_branches(wrong)
    assert receipt.first_frame == inside(stream).feeder.oldest_unfinished and receipt.effect == "keep"
    assert torch.equal(fork.result(), engine_of(model).submit(case.request()).result())
    tables = as_tables(case.branches, case.steps)
    doubled = as_tables(stronger, case.steps)
    with torch.no_grad():
        expected = plain_branches(
            model,
            case.tracks,
            case.request().latents,
            lambda n: [own.condition for own in stronger],
            lambda n: doubled if n >= 6 else tables,
            case.rule.plan(7, case.steps, 0),
            partial(case.sees, case.rule.plan(7, case.steps, 0)),
        )
    assert float((stream.result() - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("name", ["magi", "history", "two readers, one of two frames", "magi, window"])
def test_forks_and_rollbacks_and_pauses_change_nothing(name: str) -> None:
    case, model = CASES[name], network()
    expected = engine_of(model).submit(case.request()).result()
    engine = engine_of(model)
    stream = engine.submit(case.request())
    while stream.frames_ready < 1:
        engine.step(1)
    fork, paused = stream.fork(), stream.fork()
    paused.suspend()
    assert torch.equal(stream.result(), expected)
    assert torch.equal(fork.result(), expected)
    paused.resume()
    again = paused.fork()
    engine.step(1)
    paused.rollback(case.given)
    torch.testing.assert_close(paused.result(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again.result(), expected)
    assert engine.stats().pages_held == 0
