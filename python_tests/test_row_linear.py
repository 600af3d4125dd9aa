# SPDX-License-Identifier: Apache-2.0
"""RowLinear is nn.Linear, packs its weight when it may, and notices when that changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from ardiff_engine import ops
from ardiff_engine.models.dit.row_linear import RowLinear


@pytest.fixture
def layer() -> RowLinear:
    torch.manual_seed(0)
    return RowLinear(24, 40)


def as_linear(layer: RowLinear, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())


@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(layer: RowLinear) -> None:
    x = torch.randn(100, 24)
    whole = layer(x)
    assert torch.allclose(whole.double(), as_linear(layer, x), atol=1e-6)
    assert all(torch.equal(layer(x[i : i + n]), whole[i : i + n]) for n in range(1, 20) for i in (0, 3, 50))


def test_values_shapes_and_gradients_are_those_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer, x = RowLinear(24, 40, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    expected = x @ layer.weight.t() + layer.bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        assert layer(x[:, :0]).shape == (2, 0, 40)
        assert RowLinear(24, 3, bias=False)(x.float()).shape == (2, 7, 3)
    assert torch.autograd.gradcheck(lambda t: layer(t), x.requires_grad_(True))


def change_in_place(layer: RowLinear) -> None:
    layer.weight.mul_(2)


def change_by_loading(layer: RowLinear) -> None:
    layer.load_state_dict({name: 3 * value for name, value in layer.state_dict().items()})


def change_by_assigning(layer: RowLinear) -> None:
    layer.weight = torch.nn.Parameter(torch.randn(40, 24))


def change_storage(layer: RowLinear) -> None:
    layer.weight.data = torch.randn(40, 24)


def change_dtype_and_back(layer: RowLinear) -> None:
    layer.to(torch.bfloat16).to(torch.float32)


def change_unseen(layer: RowLinear) -> None:
    layer.weight.data.mul_(2)
    layer.eval()


CHANGES = (
    change_in_place,
    change_by_loading,
    change_by_assigning,
    change_storage,
    change_dtype_and_back,
    change_unseen,
)


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_weight_is_packed_anew(layer: RowLinear, change) -> None:
    x = torch.randn(5, 24)
    before = layer(x)
    change(layer)
    assert torch.allclose(layer(x).double(), as_linear(layer, x), atol=1e-6)
    assert not torch.allclose(layer(x), before, atol=1e-3)


def by_a_new_parameter(layer: RowLinear) -> None:
    del layer.weight
    layer.weight = torch.nn.Parameter(torch.randn(384, 384))


def by_new_storage(layer: RowLinear) -> None:
    layer.weight.data = torch.empty(0)
    layer.weight.data = torch.randn(384, 384)


@pytest.mark.parametrize("change", [by_a_new_parameter, by_new_storage])
@torch.no_grad()
def test_a_weight_where_another_one_was_is_another_one(change) -> None:
    """The allocator likes to give the same address again."""
    layer, x = RowLinear(384, 384), torch.randn(5, 384)
    for _ in range(20):
        change(layer)
        assert torch.allclose(layer(x).double(), as_linear(layer, x), atol=1e-3)


@torch.no_grad()
def test_weights_for_one_call() -> None:
    layer, x = RowLinear(384, 384), torch.randn(5, 384)
    for _ in range(20):
        weight = torch.randn(384, 384)
        expected = x.double() @ weight.double().t() + layer.bias.double()
        got = torch.func.functional_call(layer, {"weight": weight}, (x,))
        assert torch.allclose(got.double(), expected, atol=1e-3)
        del weight


def test_weights_made_in_inference_mode_are_packed_again_after_loading() -> None:
    with torch.inference_mode():
        layer, x = RowLinear(24, 40), torch.randn(5, 24)
        layer(x)
        layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
        assert torch.allclose(layer(x).double(), as_linear(layer, x), atol=1e-6)


class Wrapper(torch.Tensor):
    """As quantised weights are: it says float32 on the CPU, and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [a.inner if isinstance(a, Wrapper) else a for a in args]
        result = func(*plain, **(kwargs or {}))
        return Wrapper(result) if func is torch.ops.aten.detach.default else result


@torch.no_grad()
def test_a_wrapped_weight_is_left_to_pytorch(layer: RowLinear) -> None:
    x, inner = torch.randn(5, 24), layer.weight.detach().clone()
    expected = as_linear(layer, x)
    layer.weight = torch.nn.Parameter(Wrapper(inner), requires_grad=False)
    assert not layer.packs
    assert torch.allclose(layer(x).double(), expected, atol=1e-6)


@torch.no_grad()
def test_an_unchanged_weight_is_packed_once(layer: RowLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    pack = ops.pack_linear
    monkeypatch.setattr(ops, "pack_linear", lambda weight: packed.append(1) or pack(weight))
    for _ in range(3):
        layer(torch.randn(5, 24))
    assert len(packed) == 1


def test_copies_and_pickles_leave_the_packed_weight_behind(layer: RowLinear) -> None:
    x = torch.randn(5, 24)
    with torch.inference_mode():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert "_packed" not in other.__dict__
            assert torch.equal(other(x), expected)
    with torch.inference_mode():
        made_here = RowLinear(24, 40)
        assert torch.allclose(made_here(x).double(), as_linear(made_here, x), atol=1e-6)
