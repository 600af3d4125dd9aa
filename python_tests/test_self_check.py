# SPDX-License-Identifier: Apache-2.0
"""`python -m ardiff_engine.info --check`: good where it is good, and exit code 1 where an op is wrong."""

from __future__ import annotations

import pytest
import torch

from ardiff_engine import info, ops, self_check


def test_all_ops_are_checked_and_good() -> None:
    results = self_check.check()
    assert all(one.good for one in results), self_check.table(results)
    checked = {one.op.split(" ")[0].removesuffix("_") for one in results if one.backend == "cpu"}
    without = {"norm_rope", "norm_rope_pages"}  # no C++ kernel; norm_rope_write_ writes its pages
    forward = {op.removesuffix("_") for op in ops.backends() if not op.endswith("backward")}
    assert forward - without <= checked


@pytest.mark.parametrize("fault", [1e-3, float("nan"), None])
def test_a_wrong_op_is_found(
    fault: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ops.bias_gelu

    def wrong(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.dtype == torch.float64:
            return right(x, bias)
        if fault is None:
            raise RuntimeError("injected")
        return right(x, bias) * (1 + fault)

    monkeypatch.setattr(ops, "bias_gelu", wrong)
    assert info.main(check=True) == 1
    assert "bias_gelu" in "".join(line for line in capsys.readouterr().out.splitlines() if "FAILED" in line)
