# SPDX-License-Identifier: Apache-2.0
"""The choice of a backend always has a name and a reason, and a forced one is never replaced in silence."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ardiff_engine.errors import BackendNotAvailableError, ConfigError, TensorError
from ardiff_engine.ops import backend, checks
from ardiff_engine.ops.backend import Choice, backends, choose


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARDIFF_BACKEND", raising=False)
    backend._warn_once.cache_clear()


def test_float32_on_the_cpu_runs_natively() -> None:
    assert choose("modulate", torch.empty(1), None).name == "cpu"


def test_everything_else_runs_on_the_reference_and_says_why() -> None:
    wide = choose("modulate", torch.empty(1, dtype=torch.float64))
    assert wide.name == "reference" and "float64" in wide.reason
    with pytest.warns(RuntimeWarning, match="meta"):
        elsewhere = choose("modulate", torch.empty(1, device="meta"))
    assert elsewhere.name == "reference" and "meta" in elsewhere.reason


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "native", lambda: None)
    monkeypatch.setattr(backend, "why_not", lambda: "it was not built")
    assert choose("modulate", torch.empty(1)) == Choice("reference", "it was not built")
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")
    with pytest.raises(BackendNotAvailableError, match="not built"):
        choose("modulate", torch.empty(1))


def test_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    assert choose("modulate", torch.empty(1)).name == "reference"
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")
    assert choose("modulate", torch.empty(1)).name == "cpu"
    with pytest.raises(BackendNotAvailableError, match="float64"):
        choose("modulate", torch.empty(1, dtype=torch.float64))
    monkeypatch.setenv("ARDIFF_BACKEND", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        choose("modulate", torch.empty(1))


def test_backends_lists_every_op_with_a_reason() -> None:
    table = backends()
    assert "frame_attention" in table and set(table) == set(backend.OPS)
    assert all(choice.reason for row in table.values() for choice in row.values())


def test_checks_name_the_argument_and_both_sides() -> None:
    x = torch.zeros(2, 3)
    checks.shape("x", x, ("N", 3))
    with pytest.raises(TensorError, match=r"shape of x: got \[2, 3\], expected \[N, 4\]"):
        checks.shape("x", x, ("N", 4))
    with pytest.raises(TensorError, match="shape of x"):
        checks.shape("x", x, ("N",))
    with pytest.raises(TensorError, match="dtype of x: got float32, expected int64"):
        checks.dtype("x", x, torch.int64)
    with pytest.raises(TensorError, match="dtype of i"):
        checks.floating("i", x.int())
    with pytest.raises(TensorError, match="as y"):
        checks.same("x", x, "y", x.double())
    with pytest.raises(TensorError, match="device of x"):
        checks.device("x", x, torch.device("meta"))
    with pytest.raises(TensorError, match="strides of x"):
        checks.contiguous("x", x.T)
    checks.inner_contiguous("x", x[:, :2])
    with pytest.raises(TensorError, match="last stride of x"):
        checks.inner_contiguous("x", x.T)
    with pytest.raises(TensorError, match="values of x"):
        checks.finite("x", x / 0)
    with pytest.raises(TensorError, match="__dlpack__"):
        checks.tensor("x", [1.0])
    assert torch.equal(checks.tensor("x", x.numpy()), x)


def test_another_device_warns_once_per_op_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    backend._warn_once.cache_clear()
    elsewhere = torch.empty(1, device="meta")
    with pytest.warns(
        RuntimeWarning, match="modulate runs on the PyTorch reference: tensors are on meta"
    ) as seen:
        for _ in range(3):
            choose("modulate", None, torch.empty(1), elsewhere)
    assert len(seen) == 1
    with pytest.warns(RuntimeWarning, match="add_noise"):
        choose("add_noise", elsewhere)
    backend._warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("modulate", torch.empty(1))
        choose("modulate", torch.empty(1, dtype=torch.float64))
        backends()
        monkeypatch.setenv("ARDIFF_BACKEND", "reference")
        choose("modulate", elsewhere)


def test_arrays_that_cannot_be_exported_are_refused() -> None:
    with pytest.raises(TensorError, match="x: got an array that cannot be exported"):
        checks.tensor("x", np.zeros(3)[::-1].view(">f8"))
    assert checks.optional("x", None) is None
    own = np.zeros(3, np.float32)
    checks.writable("x", own).fill_(2)
    assert own.tolist() == [2, 2, 2]
