# SPDX-License-Identifier: Apache-2.0
"""solver_step against float64. Limit: 1e-6 relative L2; generated noise adds its own 2e-6 per value."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.ops.philox_normal import reference_philox_normal
from ardiff_engine.ops.solver_step import reference_solver_step, solver_step

NAN, INF = float("nan"), float("inf")
LIMIT = 8
SHAPES = [(1, 1), (3, 7), (5, 32, 4), (2, 4097), (3, 30_001), (0, 8)]


def inputs(shape: tuple[int, ...], branches: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(sum(shape))
    x, noise, history1, history2, history3 = torch.randn(5, *shape)
    weights = torch.randn(branches, shape[0])
    coefficients = torch.randn(shape[0], 9)
    coefficients[:, LIMIT] = INF
    return {
        "x": x, "outs": torch.randn(branches, *shape), "weights": weights, "coefficients": coefficients,
        "history1": history1, "history2": history2, "history3": history3, "noise": noise,
    }  # fmt: skip


def expected(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    wide = {name: value.double() for name, value in given.items()}
    optional = [wide.get(name) for name in ("history1", "history2", "history3")]
    return reference_solver_step(
        wide["x"],
        wide["outs"],
        wide["weights"],
        wide["coefficients"],
        *optional,
        None,
        wide.get("noise"),
    )


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("limit", [INF, 0.7])
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_terms(shape: tuple[int, ...], branches: int, limit: float) -> None:
    given = inputs(shape, branches)
    given["coefficients"][::2, LIMIT] = limit  # each row has its own
    got, want = solver_step(**given), expected(given)
    assert error(got.x, want[0]) <= 1e-6 and error(got.x0, want[1]) <= 1e-6
    if got.x0.numel():
        assert got.x0[::2].abs().max() <= limit


@pytest.mark.usefixtures("isa")
def test_generated_noise_only_where_e_is_not_zero() -> None:
    given = inputs((4, 5003))
    given["coefficients"][1, 4] = 0
    given["coefficients"][3, 4] = 0
    del given["noise"]
    keys = torch.randint(0, 2**20, (4, 5))
    got = solver_step(**given, keys=keys)
    want = expected({**given, "noise": reference_philox_normal(keys, 5003)})
    torch.testing.assert_close(got.x.double(), want[0], rtol=1e-5, atol=1e-5)
    other = solver_step(**given, keys=keys + 1)
    assert torch.equal(got.x[[1, 3]], other.x[[1, 3]]) and not torch.equal(got.x[[0, 2]], other.x[[0, 2]])


@pytest.mark.usefixtures("isa")
def test_terms_with_coefficient_zero_are_not_read() -> None:
    given = inputs((3, 70))
    given["coefficients"][:, 4:LIMIT] = 0
    given["weights"][1] = 0
    plain = solver_step(given["x"], given["outs"][:1], given["weights"][:1], given["coefficients"])
    given["outs"][1] = NAN
    for name in ("history1", "history2", "history3", "noise"):
        given[name].fill_(NAN)
    poisoned = solver_step(**given)
    assert torch.equal(plain.x, poisoned.x) and torch.equal(plain.x0, poisoned.x0)
    wide = expected(given)
    assert torch.isfinite(wide[0]).all()


@pytest.mark.usefixtures("isa")
def test_nan_outputs_stay_visible() -> None:
    given = inputs((2, 33))
    given["outs"][0, 1, 5] = NAN
    given["coefficients"][:, LIMIT] = 1.0
    got = solver_step(**given)
    assert torch.isnan(got.x0).sum() == 1 and torch.isnan(got.x[1, 5])


@pytest.mark.usefixtures("isa")
def test_a_row_does_not_depend_on_its_batch() -> None:
    given = inputs((5, 9001))
    together = solver_step(**given)
    row = {
        name: value[:, 2:3] if name in ("outs", "weights") else value[2:3] for name, value in given.items()
    }
    alone = solver_step(**row)
    assert torch.equal(together.x[2:3], alone.x) and torch.equal(together.x0[2:3], alone.x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("column", "missing"), [(4, "noise"), (5, "history1"), (6, "history2"), (7, "history3")]
)
def test_missing_inputs(dtype: torch.dtype, column: int, missing: str) -> None:
    given = {name: value.to(dtype) for name, value in inputs((3, 7)).items()}
    del given[missing]
    with pytest.raises(TensorError, match=missing):
        solver_step(**given)
    given["coefficients"][:, column] = 0
    assert torch.isfinite(solver_step(**given).x).all()


def test_wrong_arguments() -> None:
    given = inputs((3, 7))
    changes: list[dict[str, object]] = [
        {"outs": given["outs"][0]},
        {"weights": given["weights"][:1]},
        {"coefficients": given["coefficients"][:, :4]},
        {"coefficients": torch.ones(3, 10)},
        {"history1": given["history1"][:2]},
        {"noise": given["noise"].double()},
    ]
    for change in changes:
        with pytest.raises(TensorError):
            solver_step(**{**given, **change})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="noise and keys"):
        solver_step(**given, keys=torch.zeros(3, 5, dtype=torch.int64))
    for limit in (0.0, -1.0, NAN):
        given["coefficients"][1, LIMIT] = limit
        with pytest.raises(TensorError, match="limit"):
            solver_step(**given)


@pytest.mark.parametrize("columns", [5, 6, 7, 8])
def test_columns_left_out_are_no_history_and_no_limit(columns: int) -> None:
    given = inputs((3, 7))
    given["coefficients"][:, columns:LIMIT] = 0
    short = {**given, "coefficients": given["coefficients"][:, :columns]}
    got, want = solver_step(**short), solver_step(**given)
    assert torch.equal(got.x, want.x) and torch.equal(got.x0, want.x0)


def test_opcheck() -> None:
    given = inputs((3, 7))
    first = (
        given["x"],
        given["outs"],
        given["weights"],
        given["coefficients"],
        given["history1"],
        given["history2"],
        given["history3"],
    )
    keys = torch.zeros(3, 5, dtype=torch.int64)
    torch.library.opcheck(torch.ops.ardiff.solver_step.default, (*first, keys, None))
    torch.library.opcheck(torch.ops.ardiff.solver_step.default, (*first, None, given["noise"]))


def test_arrays_of_other_libraries() -> None:
    given = inputs((3, 7))
    got = solver_step(**{name: value.numpy() for name, value in given.items()})  # type: ignore[arg-type]
    assert torch.equal(got.x, solver_step(**given).x)
    for name in given:
        with pytest.raises(TensorError, match=f"{name}: got list"):
            solver_step(**{**given, name: given[name].tolist()})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_is_recorded(dtype: torch.dtype) -> None:
    given = {name: value.to(dtype).requires_grad_() for name, value in inputs((3, 7)).items()}
    got = solver_step(**given)
    assert not got.x.requires_grad and not got.x0.requires_grad
