# SPDX-License-Identifier: Apache-2.0
"""NaN and infinities come out of every kernel as they come out of the formula in float64.

An op that makes a finite number of them would hide an overflow from NumericalError. One value of one argument
is bad at a time; compared is whether each result is finite, NaN, +inf or -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine import ops
from ardiff_engine.ops import FrameTable

T, D, M = 6, 20, 3
"""Tokens, width (whole vectors and a rest for all instruction sets) and rows of a table."""
BAD = (float("nan"), float("inf"), float("-inf"))
FRAME_IDS = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)
FREQUENCIES = torch.tensor([1.0, 0.3, 0.01, 0.001], dtype=torch.float64)
KEYS = torch.arange(5 * M).reshape(M, 5)
TABLES = {
    "bias": FrameTable.build([2, 4], [[0, 1], [1, 2]], [[4, 3], [4, 2]], bias=[[0.5, -1.0], [0.0, 2.0]]),
    "no bias": FrameTable.build([2, 4], [[0, 1], [1, 2]], [[4, 3], [4, 2]]),
}


@dataclass(frozen=True)
class Case:
    """An op and the shapes of its floating-point arguments."""

    run: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    differentiable: bool = False


def _linear(gelu: bool) -> Callable[..., Any]:
    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            return ops.linear(x, ops.pack_linear(weight), bias, gelu=gelu)
        y = torch.nn.functional.linear(x, weight, bias)
        return torch.nn.functional.gelu(y, approximate="tanh") if gelu else y

    return run


def _norm_rope(norm: str, into: str) -> Case:
    heads, dim = 2, 8
    affine = heads * dim if norm == "rms_full" else dim
    shapes = {"qkv": (T, 3 * heads * dim)}
    if norm != "none":
        shapes |= dict.fromkeys(("q_weight", "q_bias", "k_weight", "k_bias"), (affine,))
    if into != "pages":
        shapes["qkv_bias"] = (3 * heads * dim,)
    both = {"heads": heads, "norm": norm, "frequencies": FREQUENCIES}

    def run(qkv: torch.Tensor, **given: torch.Tensor) -> Any:
        at = torch.arange(T)
        if into == "tensors":
            return ops.norm_rope(qkv, at, **both, **given)
        if into == "pages":
            return ops.norm_rope_pages(qkv, at, at, num_pages=2, page_rows=4, **both, **given)
        k, v = (torch.zeros(2, heads, 4, dim, dtype=qkv.dtype) for _ in "kv")
        return ops.norm_rope_write_(qkv, k, v, at, at, **both, **given), k, v

    return Case(run, shapes, differentiable=into != "pool")


def _limited_step(coefficients: torch.Tensor, **given: torch.Tensor) -> Any:
    return ops.solver_step(coefficients=torch.nn.functional.pad(coefficients, (0, 1), value=1.0), **given)


def _rotate(k: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
    k = k.clone()
    frequencies = given.pop("frequencies", FREQUENCIES)
    ops.rotate_pages_(k, torch.tensor([1, 2]), torch.tensor([5, -3]), frequencies, **given)
    return k


def _copy(k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = k.clone(), v.clone()
    ops.copy_pages_(k, v, torch.tensor([0]), torch.tensor([2]))
    return k, v


def _pool(pages: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    pages = pages.clone()
    sources, targets = torch.tensor([[0, 5], [3, -1]]), torch.tensor([9, 10])
    ops.pool_pages_(pages, sources, targets, weights.float())
    return pages


def _cases() -> dict[str, Case]:
    rows, table, column = (T, D), (M, D), (D,)
    gate = {"residual": rows, "branch": rows, "gate": table, "bias": column}
    step = {"x": table, "outs": (2, M, D), "weights": (2, M), "coefficients": (M, 8)}
    step |= dict.fromkeys(("history1", "history2", "history3", "noise"), table)
    level = {"x0": table, "signal": (M,), "sigma": (M,)}
    pool = (2, 3, 2, 4, 8)
    cases = {
        "bias_gelu": Case(ops.bias_gelu, {"x": rows, "bias": column}, True),
        "gate_residual": Case(
            lambda bias, **k: ops.gate_residual(*k.values(), FRAME_IDS, bias=bias), gate, True
        ),
        "gate_residual_": Case(
            lambda residual, branch, gate, bias: ops.gate_residual_(
                residual.clone(), branch, gate, FRAME_IDS, bias=bias
            ),
            gate,
        ),
        "rotate_pages_": Case(_rotate, {"k": pool, "frequencies": (4,)}),
        "rotate_pages_ source": Case(_rotate, {"k": pool, "source": (2, 2, 2, 4, 8)}),
        "pool_pages_": Case(_pool, {"pages": pool, "weights": (2, 2, 2, 8)}),
        "copy_pages_": Case(_copy, {"k": pool, "v": pool}),
    }
    for gelu in (False, True):
        cases[f"linear gelu={gelu}"] = Case(_linear(gelu), {"x": rows, "weight": (30, D), "bias": (30,)})
    for norm in ("none", "layer", "rms"):
        cases[f"modulate {norm}"] = Case(
            lambda norm=norm, **k: ops.modulate(*k.values(), FRAME_IDS, norm=norm, return_normed=True),
            {"x": rows, "shift": table, "scale": table},
            True,
        )
    for norm in ("none", "layer", "rms", "rms_full"):
        for into in ("tensors", "pages", "pool"):
            cases[f"norm_rope {norm} into {into}"] = _norm_rope(norm, into)
    for dim in (8, 64, 72):
        for name, pages in TABLES.items():
            cases[f"frame_attention {dim} {name}"] = Case(
                lambda pages=pages, **k: ops.frame_attention(*k.values(), pages, return_lse=True),
                {"q": (T, 2, dim), "k": (3, 2, 4, dim), "v": (3, 2, 4, dim)},
                True,
            )
    for target in ("x0", "eps", "v", "flow"):
        cases[f"add_noise {target}"] = Case(
            lambda target=target, **k: ops.add_noise(**k, target=target), level | {"noise": table}
        )
        cases[f"add_noise {target} keys"] = Case(
            lambda target=target, **k: ops.add_noise(**k, keys=KEYS, target=target), level
        )
    cases["solver_step"] = Case(ops.solver_step, step)
    cases["solver_step limit"] = Case(_limited_step, step)
    return cases


CASES = _cases()


def _one_bad_value(case: Case) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    random = torch.Generator().manual_seed(0)
    good = {name: torch.randn(shape, generator=random) for name, shape in case.shapes.items()}
    for name, value in good.items():
        for bad in BAD:
            for at in (0, value.numel() // 2, -1):
                given = {other: tensor.clone() for other, tensor in good.items()}
                given[name].view(-1)[at] = bad
                yield f"{bad} in {name}[{at}]", given


def _results(made: Any) -> list[torch.Tensor]:
    return [made] if isinstance(made, torch.Tensor) else [one for one in made if one is not None]


def _kind(value: torch.Tensor, infinities_are_nan: bool) -> torch.Tensor:
    """0 finite, 1 infinity, -1 minus infinity, 2 NaN"""
    kind = torch.where(value.isnan(), 2, value.isposinf().int() - value.isneginf().int())
    return torch.where(kind != 0, 2, 0) if infinities_are_nan else kind


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CASES)
def test_results_are_as_finite_as_the_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    # There is no C++ kernel of norm_rope; lse of an infinite logit is infinite or NaN, and o NaN.
    if name.endswith("into tensors"):
        monkeypatch.delenv("ARDIFF_BACKEND")
    of_lse = name.startswith("frame_attention")
    for what, given in _one_bad_value(case):
        got = _results(case.run(**given))
        with monkeypatch.context() as context:
            context.setenv("ARDIFF_BACKEND", "reference")
            want = _results(case.run(**{name: value.double() for name, value in given.items()}))
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            loose = of_lse and index == 1
            assert torch.equal(_kind(one, loose), _kind(other, loose)), f"{what}, result {index}"


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.differentiable])
def test_gradients_hide_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that is not finite in the formula is not finite here either."""
    case = CASES[name]
    if name.endswith("into tensors"):
        monkeypatch.delenv("ARDIFF_BACKEND")

    def gradients(given: dict[str, torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [value.to(dtype).requires_grad_() for value in given.values()]
        made = _results(case.run(**dict(zip(given, inputs, strict=True))))
        total = sum((one.cos() if one.dim() == 3 else one).sum() for one in made[:1])
        return list(torch.autograd.grad(total, inputs, allow_unused=True))

    for what, given in _one_bad_value(case):
        got = gradients(given, torch.float32)
        with monkeypatch.context() as context:
            context.setenv("ARDIFF_BACKEND", "reference")
            want = gradients(given, torch.float64)
        for argument, one, other in zip(given, got, want, strict=True):
            if other is not None:
                hidden = one.isfinite() & ~other.isfinite()
                assert not hidden.any(), f"{what}, gradient of {argument}"
