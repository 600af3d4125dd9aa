# SPDX-License-Identifier: Apache-2.0
"""A value of another kind than the one asked for is a typed error that names the argument."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.media import read_clip
from ardiff_engine.systems import trace


@functools.cache
def pipe() -> ade.Pipeline:
    return ade.Pipeline.from_pretrained("moving-digits")


def solver() -> ade.solvers.Solver:
    return ade.solvers.DDIM(pipe().schedule, num_inference_steps=4, prediction=pipe().prediction)


def engine(**given: object) -> ade.Engine:
    return ade.Engine(pipe().transformer, solver=solver(), **given)  # type: ignore[arg-type]


def memory_plan(streams: object) -> object:
    return ade.Engine.memory_plan(pipe().transformer, solver=solver(), streams=streams)  # type: ignore[arg-type]


WRONG: dict[str, tuple[str, Callable[[], object]]] = {
    "model of None": ("model", lambda: ade.Pipeline.from_pretrained(None)),  # type: ignore[arg-type]
    "weights of None": ("path", lambda: ade.weights.load_wan(None)),  # type: ignore[arg-type]
    "autoencoder of None": ("path", lambda: ade.codec.WanVAE.from_file(None)),  # type: ignore[arg-type]
    "video is a number": ("path", lambda: ade.read_video(3)),  # type: ignore[arg-type]
    "target is a number": ("path", lambda: ade.export_video(torch.zeros(1, 8, 8, 3), 5)),  # type: ignore[arg-type]
    "max_frames is text": ("max_frames", lambda: read_clip("x.mp4", "x")),  # type: ignore[arg-type]
    "latents are text": ("latents", lambda: pipe().decode("x")),  # type: ignore[arg-type]
    "latents of a batch": ("latents", lambda: pipe().decode(torch.zeros(1, 2, 4, 16))),
    "latents without a frame": ("latents", lambda: pipe().decode(torch.zeros(0, 4, 16))),
    "seed of a video is true": ("seed", lambda: pipe()(num_frames=4, seed=True)),
    "seed of a stream is true": ("seed", lambda: pipe().stream(4, seed=True)),
    "seed of a request is true": ("seed", lambda: ade.Request(num_frames=4, seed=True)),
    "guidance is true": ("guidance", lambda: ade.Request(num_frames=4, guidance_scale=True)),
    "request of None": ("request", lambda: engine().submit(None)),  # type: ignore[arg-type]
    "memory is a class": ("memory", lambda: engine(memory=ade.memory.Full)),
    "max_waiting below 0": ("max_waiting", lambda: engine(max_waiting=-1)),
    "max_batch_tokens of 0": ("max_batch_tokens", lambda: engine(max_batch_tokens=0)),
    "streams is text": ("streams", lambda: memory_plan("x")),
    "sets of numbers": ("sets", lambda: ade.plan.sets([1, 2])),  # type: ignore[list-item]
    "frames of a set are text": ("frame of a set", lambda: ade.plan.sets("ab")),  # type: ignore[arg-type]
    "uncertainty is text": ("uncertainty", lambda: ade.plan.pyramid("x").plan(4, (4,))),  # type: ignore[arg-type]
    "timesteps of no track": (
        "timesteps",
        lambda: trace(ade.plan.lag(4, 4, 4), ade.memory.Full(), solver().timesteps),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_kinds(case: str) -> None:
    name, call = WRONG[case]
    with pytest.raises(ade.ArdiffError, match=name):
        call()
