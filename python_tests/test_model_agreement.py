# SPDX-License-Identifier: Apache-2.0
"""A network whose spec and tensors disagree: a typed error, and nothing is taken."""

from dataclasses import replace

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.evaluation.gaussian_video import GaussianVideo
from ardiff_engine.memory import Full
from ardiff_engine.models import ConditionSpec, Tables

SCHEDULE = NoiseSchedule.sqrt_linear()
NONE = ConditionSpec("none", 0, (0,))


def model() -> GaussianVideo:
    return GaussianVideo(((0.9, 8.0),) * 2, SCHEDULE, tokens=4, causal=True)


def engine_of(network: GaussianVideo) -> ade.Engine:
    return ade.Engine(network, solver=ade.solvers.DDIM(SCHEDULE, 4), memory=Full(), max_pages=20)


@pytest.mark.parametrize(
    "change, noun",
    [
        ({"layers": 0}, "layers"),
        ({"tokens_per_frame": 2.5}, "tokens_per_frame"),
        ({"heads": 3, "kv_heads": 2}, "kv_heads"),
        ({"tokens_per_frame": None}, "tokens_per_frame"),
        ({"patch": (1, 1), "size": (2, 2)}, "patch"),
        ({"tokens_per_frame": None, "patch": (1, 1)}, "patch"),
        ({"tokens_per_frame": None, "patch": (1, 2), "size": (2, 3)}, "size"),
        ({"tokens_per_frame": None, "patch": (2, 0), "size": (2, 2)}, "patch"),
        ({"tokens_per_frame": None, "patch": (3, 1), "size": (3, 3)}, "channels"),
        ({"condition": replace(NONE, tokens=3)}, "condition"),
        ({"condition": ConditionSpec("joint", 0, (0,))}, "condition"),
        ({"condition": ConditionSpec("text", 3, (3,))}, "condition"),
        ({"condition": ConditionSpec("cross", 3, (3,), (2, 2))}, "parts"),
        ({"condition": ConditionSpec("joint", 3, (3,), (2, 1))}, "parts"),
    ],
)
def test_a_spec_that_no_network_can_have(change: dict, noun: str) -> None:
    network = model()
    network._spec = replace(network.spec, **change)
    with pytest.raises(ConfigError, match=noun):
        engine_of(network)


@pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 0)])
def test_tables_with_too_few_rows(rows: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GaussianVideo.tables
    monkeypatch.setattr(GaussianVideo, "tables", lambda *given: Tables((whole(*given).parts[0][rows],)))
    with pytest.raises(ConfigError, match="rows"):
        engine_of(model())


def test_a_condition_of_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model())
    monkeypatch.setattr(GaussianVideo, "null_condition", lambda self: torch.zeros(3))
    with pytest.raises(TensorError, match="spec"):
        engine.submit(ade.Request(num_frames=3, lag=2, guidance_scale=2.0))
    monkeypatch.setattr(GaussianVideo, "condition", lambda self, given: torch.zeros(3))
    with pytest.raises(TensorError, match="spec"):
        engine.submit(ade.Request(num_frames=3, lag=2))
    assert engine.stats().pages_promised == 0


@pytest.mark.parametrize(
    "to_tokens, from_tokens",
    [
        (lambda self, x: x[..., :-1], lambda self, x, size: x),
        (lambda self, x: x, lambda self, x, size: x.flip(-1)),
        (lambda self, x: x, lambda self, x, size: x[..., :-1, :]),
        (lambda self, x: x.transpose(-1, -2), lambda self, x, size: x.transpose(-1, -2)),
    ],
)
def test_a_layout_that_is_not_the_specs(to_tokens, from_tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model())
    monkeypatch.setattr(GaussianVideo, "to_tokens", to_tokens)
    monkeypatch.setattr(GaussianVideo, "from_tokens", from_tokens)
    with pytest.raises(TensorError, match="to_tokens"):
        engine.submit(ade.Request(num_frames=3, lag=2))
    assert engine.stats().pages_promised == 0


def test_an_output_of_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(model())
    monkeypatch.setattr(GaussianVideo, "__call__", lambda self, x, *given: x[:, :1])
    with pytest.raises(TensorError, match="output"):
        engine.submit(ade.Request(num_frames=3, lag=2)).result()
    assert engine.stats().pages_held == 0
