# SPDX-License-Identifier: Apache-2.0
"""One step of any linear solver, with guidance and noise folded in; every row has its own level.

    out = sum_b weights[b] outs[b]                      guidance over branches
    x0  = p x + q out, within [-limit, limit]           p, q from the parametrisation: x0, eps, v or flow
    x'  = a x + b x0 + e eps + c1 history1 + c2 history2 + c3 history3

A solver is a table of rows (p, q, a, b, e, c1, c2, c3, limit): DDIM, DDPM, Euler flow, re-noise,
DPM-Solver++, UniPC. The histories are the x0 of the steps before, the latest first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import device, floating, optional, same, tensor
from ardiff_engine.ops.cuda_launch import address, launch_for
from ardiff_engine.ops.dispatch import watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.noise_keys import check_keys
from ardiff_engine.ops.philox_normal import philox_normal

COEFFICIENTS = ("p", "q", "a", "b", "e", "c1", "c2", "c3", "limit")
_LEFT_OUT = (0.0, 0.0, 0.0, float("inf"))


class SolverResult(NamedTuple):
    """`x` at the next level, and the prediction `x0` that led there (the history of multistep solvers)."""

    x: torch.Tensor
    x0: torch.Tensor


@without_autocast
def solver_step(
    x: torch.Tensor,
    outs: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    *,
    history1: torch.Tensor | None = None,
    history2: torch.Tensor | None = None,
    history3: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> SolverResult:
    """x [N, ...] and network outputs outs [B, N, ...] -> (x', x0), both like x.

    Args:
        x: [N, ...], floating point.
        outs: [B, N, ...], of the dtype of x: outputs of the network, one per branch of guidance.
        weights: [B, N], floating point, used as float32 for float32 x.
        coefficients: [N, 9], likewise: p, q, a, b, e, c1, c2, c3, limit. The last four may be left out, from
            the end: c is 0 then, and there is no limit (infinity).
        history1, history2, history3: like x, where c1, c2, c3 are not 0.
        keys, noise: eps where e is not 0: drawn (int64 [N, 5], see `noise_keys`) or given, like x.

    A term with weight or coefficient 0 is not read: its memory may hold anything. No gradient is recorded.

    Raises:
        ConfigError: both noise and keys.
        TensorError: a wrong shape, dtype or device; on the CPU also a term without its input (on other
            devices such rows become NaN: a check would stall the device queue) or a limit <= 0.
    """
    x, outs = tensor("x", x), tensor("outs", outs)
    weights, coefficients = tensor("weights", weights), tensor("coefficients", coefficients)
    history1, history2 = optional("history1", history1), optional("history2", history2)
    history3 = optional("history3", history3)
    keys, noise = optional("keys", keys), optional("noise", noise)
    floating("x", x)
    same("outs", outs, "x", x)
    if outs.dim() != x.dim() + 1 or x.dim() == 0 or outs.shape[1:] != x.shape:
        raise TensorError(
            explain(
                "shape of outs",
                got=list(outs.shape),
                expected=["branches", *x.shape],
                fix="Stack the branches.",
            )
        )
    rows = x.shape[0]
    left_out = len(COEFFICIENTS) - coefficients.shape[-1] if coefficients.dim() == 2 else 0
    if 0 < left_out <= len(_LEFT_OUT):
        rest = coefficients.new_tensor(_LEFT_OUT[-left_out:]).expand(coefficients.shape[0], -1)
        coefficients = torch.cat([coefficients, rest], dim=1)
    for name, value, expected in (
        ("weights", weights, outs.shape[:2]),
        ("coefficients", coefficients, (rows, len(COEFFICIENTS))),
    ):
        if value.shape != expected or not value.is_floating_point():
            raise TensorError(
                explain(
                    name,
                    got=f"{value.dtype} {list(value.shape)}",
                    expected=f"floating point {list(expected)}",
                    fix=f"The columns of coefficients are {', '.join(COEFFICIENTS)}.",
                )
            )
        device(name, value, x.device)
    terms = (("history1", history1), ("history2", history2), ("history3", history3), ("noise", noise))
    for name, term in terms:
        if term is not None:
            same(name, term, "x", x)
            if term.shape != x.shape:
                raise TensorError(
                    explain(
                        f"shape of {name}", got=list(term.shape), expected=list(x.shape), fix="It is like x."
                    )
                )
    if noise is not None and keys is not None:
        raise ConfigError(
            explain("noise and keys", got="both", expected="at most one", fix="Pass one of the two.")
        )
    if keys is not None:
        keys = check_keys(keys, rows, x.device)
    inputs = (x, outs, weights, coefficients, history1, history2, history3, keys, noise)
    run = torch.ops.ardiff.solver_step if watched(*inputs) else _run
    with torch.no_grad():
        return SolverResult(*run(*inputs))


@without_autocast
def reference_solver_step(
    x: torch.Tensor,
    outs: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    history1: torch.Tensor | None,
    history2: torch.Tensor | None,
    history3: torch.Tensor | None,
    keys: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification in PyTorch. A term that is needed and missing makes its row NaN."""
    wide = torch.promote_types(x.dtype, torch.float32)
    column = (-1, *[1] * (x.dim() - 1))
    p, q, a, b, e, c1, c2, c3, limit = (c.reshape(column) for c in coefficients.to(wide).unbind(1))
    state = x.to(wide)
    out = torch.zeros_like(state)
    for branch, weight in zip(outs.to(wide), weights.to(wide), strict=True):
        out = out + _term(weight.reshape(column), branch)
    x0 = (p * state + q * out).clamp(-limit, limit)
    if keys is not None:
        noise = philox_normal(keys, x[0].numel() if x.shape[0] else 0).reshape(x.shape)
    result = a * state + b * x0 + _term(e, noise)
    result = result + _term(c1, history1) + _term(c2, history2) + _term(c3, history3)
    return result.to(x.dtype), x0.to(x.dtype)


def _term(coefficient: torch.Tensor, value: torch.Tensor | None) -> torch.Tensor:
    product = coefficient * (float("nan") if value is None else value.to(coefficient.dtype))
    return torch.where(coefficient == 0, torch.zeros_like(product), product)


def _bad_column(column: str) -> TensorError:
    if column == "limit":
        return TensorError(
            "solver_step: column limit of coefficients must be positive; use infinity for no limit."
        )
    needed = "noise or keys" if column == "e" else column.replace("c", "history")
    return TensorError(f"solver_step: coefficient {column} is not 0, so it needs {needed}.")


def _check_columns(
    coefficients: torch.Tensor, has_noise: bool, histories: tuple[torch.Tensor | None, ...]
) -> None:
    if coefficients.device.type != "cpu":
        return
    given = (has_noise, *(history is not None for history in histories))
    for column, there in zip(COEFFICIENTS[4:8], given, strict=True):
        if not there and bool((coefficients[:, COEFFICIENTS.index(column)] != 0).any()):
            raise _bad_column(column)
    if not bool((coefficients[:, 8] > 0).all()):
        raise _bad_column("limit")


def _run(
    x: torch.Tensor,
    outs: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    history1: torch.Tensor | None,
    history2: torch.Tensor | None,
    history3: torch.Tensor | None,
    keys: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    histories = (history1, history2, history3)
    backend = choose("solver_step", x, outs).name
    if backend == "triton":
        run = triton_kernel("solver_step")
        result, x0 = run(x, outs, weights, coefficients, *histories, keys, noise)
        return result, x0
    if backend == "reference":
        _check_columns(coefficients, keys is not None or noise is not None, histories)
        return reference_solver_step(x, outs, weights, coefficients, *histories, keys, noise)
    x, outs = x.contiguous(), outs.contiguous()
    weights, coefficients = (
        weights.to(torch.float32).contiguous(),
        coefficients.to(torch.float32).contiguous(),
    )
    optional = [None if value is None else value.contiguous() for value in (*histories, noise)]
    result, x0 = torch.empty_like(x), torch.empty_like(x)
    rows = x.shape[0]
    arguments = (
        x.data_ptr(),
        outs.data_ptr(),
        weights.data_ptr(),
        coefficients.data_ptr(),
        *map(address, optional),
        address(keys),
        result.data_ptr(),
        x0.data_ptr(),
        outs.shape[0],
        rows,
        x.numel() // max(rows, 1),
    )
    if backend == "cuda":
        launch_for("solver_step", x, *arguments)
        return result, x0
    bad = kernels().solver_step(*arguments)
    if bad >= 0:
        raise _bad_column(COEFFICIENTS[bad])
    return result, x0


@torch.library.custom_op("ardiff::solver_step", mutates_args=())
def _solver_step_op(
    x: torch.Tensor,
    outs: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    history1: torch.Tensor | None,
    history2: torch.Tensor | None,
    history3: torch.Tensor | None,
    keys: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(x, outs, weights, coefficients, history1, history2, history3, keys, noise)


@_solver_step_op.register_fake
def _solver_step_fake(
    x: torch.Tensor,
    outs: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    history1: torch.Tensor | None,
    history2: torch.Tensor | None,
    history3: torch.Tensor | None,
    keys: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)
