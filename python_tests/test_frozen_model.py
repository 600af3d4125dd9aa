# SPDX-License-Identifier: Apache-2.0
"""A frozen model: which blocks are packed, refused or called as modules and when that ends."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from helpers.packed_models import ROPE, count_calls, model_of, run
from native_isa import isa  # noqa: F401
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Engine
from ardiff_engine.errors import ConfigError
from ardiff_engine.models import ARDiffusionTransformer
from ardiff_engine.models.ar_diffusion.block import Mlp
from ardiff_engine.models.dit.row_linear import RowLinear


def replaced(model: ARDiffusionTransformer) -> None:
    old = model.layers[0].mlp.fc1
    layer = torch.nn.Linear(old.in_features, old.out_features)
    layer.load_state_dict(old.state_dict())
    model.layers[0].mlp.fc1 = layer


def hooked(model: ARDiffusionTransformer) -> None:
    model.layers[0].attn.proj.register_forward_hook(lambda *_: None)


def observed(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp.register_forward_pre_hook(lambda *_: None)


class Relu(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu())


def of_another_class(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp.__class__ = Relu


def without_its_parts(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp = torch.nn.Identity()


def called_otherwise(model: ARDiffusionTransformer) -> None:
    layer = model.layers[0].mlp.fc2
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight.to(x)) * 0.5


CHANGES = [replaced, hooked, observed, of_another_class, without_its_parts, called_otherwise]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_is_refused_or_called_as_modules(change, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ROPE)
    change(model)
    with pytest.raises(ConfigError, match="block"):
        model.freeze()
    model.as_modules = True
    model.freeze()
    calls = count_calls(monkeypatch)
    got, _ = run(model, torch.float32)
    wide, _ = run(copy.deepcopy(model).double(), torch.float64)
    if change is not called_otherwise:  # whose copy still has the weights of the first
        assert ((got - wide).norm() / wide.norm()).item() <= 3e-6
    assert not calls


def test_global_hooks_are_refused() -> None:
    model = model_of(ROPE)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="hooks"):
            model.freeze()
    finally:
        handle.remove()


def test_an_engine_freezes_its_model() -> None:
    model = model_of(ROPE)
    hooked(model)
    solver = DDIM(NoiseSchedule.sqrt_linear(), 4)
    with pytest.raises(ConfigError, match="hooks"):
        Engine(model, solver=solver)


def strided_bias(model: ARDiffusionTransformer) -> None:
    bias = model.layers[0].attn.proj.bias
    bias.data = torch.stack([bias.data, bias.data + 7], dim=1)[:, 0]


def pruned_norm(model: ARDiffusionTransformer) -> None:
    prune.random_unstructured(model.layers[0].attn.q_norm, "weight", 0.3)


def parametrised_norm(model: ARDiffusionTransformer) -> None:
    register_parametrization(model.layers[1].attn.k_norm, "weight", torch.nn.Softplus())


def wider_hidden_layer(model: ARDiffusionTransformer) -> None:
    for block in model.layers:
        block.mlp.fc1, block.mlp.fc2 = RowLinear(48, 1024), RowLinear(1024, 48)


def other_residual(model: ARDiffusionTransformer) -> None:
    model.layers[1].replaces_residual = True


@pytest.mark.parametrize(
    "change", [strided_bias, pruned_norm, parametrised_norm, wider_hidden_layer, other_residual]
)
def test_what_the_modules_compute_is_what_is_packed(change, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ROPE)
    change(model)
    with torch.no_grad():
        model.freeze()
    calls = count_calls(monkeypatch)
    got, _ = run(model, torch.float32)
    assert len(calls) == 1
    model.as_modules = True
    with torch.no_grad():
        model.freeze()
    assert torch.allclose(got, run(model, torch.float32)[0], atol=1e-5) and len(calls) == 1


def test_a_copy_of_a_frozen_model_is_a_model_of_its_own() -> None:
    model = model_of(ROPE)
    expected, _ = run(model, torch.float32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.layers[0].attn.k_norm.bias.add_(1.0)
            other.layers[1].mlp.fc1.bias.add_(1.0)
        changed, _ = run(other, torch.float32)
        wide, _ = run(copy.deepcopy(other).double(), torch.float64)
        assert ((changed - wide).norm() / wide.norm()).item() <= 3e-6
        assert not torch.allclose(changed, expected, atol=1e-3)
    assert torch.equal(run(model, torch.float32)[0], expected)


def test_training_mode_lets_go_of_packed_weights() -> None:
    model = model_of(ROPE)
    run(model, torch.float32)
    packed = [weakref.ref(layer.packed().panels) for block in model.layers for layer in block.linears]
    model.train()
    gc.collect()
    assert not any(panels() is not None for panels in packed)


@pytest.mark.parametrize("undo", ["train", "load_state_dict", "to"])
def test_a_thawed_model_lets_go_of_packed_weights(undo: str) -> None:
    model = model_of(ROPE)
    packed = weakref.ref(model._native)
    if undo == "train":
        model.train()
    elif undo == "to":
        model.to(torch.float64)
    else:
        model.load_state_dict(model.state_dict())
    gc.collect()
    assert packed() is None


def test_a_changed_weight_counts_from_the_next_freeze_on() -> None:
    model = model_of(ROPE)
    before, _ = run(model, torch.float32)
    with torch.no_grad():
        model.layers[1].mlp.fc2.weight.mul_(1.5)
    assert torch.equal(run(model, torch.float32)[0], before)
    model.freeze()
    after, _ = run(model, torch.float32)
    expected, _ = run(model.double(), torch.float64)
    assert not torch.allclose(before, after, atol=1e-3)
    assert ((after - expected).norm() / expected.norm()).item() <= 3e-6
