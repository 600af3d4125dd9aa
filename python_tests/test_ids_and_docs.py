# SPDX-License-Identifier: Apache-2.0
"""Ids may be int32 or int64, and the docstring of every public op names each of its arguments."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import torch

from ardiff_engine import ops
from ardiff_engine.errors import TensorError

FREQUENCIES = torch.tensor([1.0, 0.5], dtype=torch.float64)


def per_frame(ids: torch.Tensor) -> list[torch.Tensor]:
    x, table = torch.arange(24.0).reshape(6, 4).sin(), torch.arange(12.0).reshape(3, 4).cos()
    y = x.clone().requires_grad_()
    made = ops.modulate(y, table, table, ids)
    (gradient,) = torch.autograd.grad(made.square().sum(), y)
    return [made, gradient, ops.gate_residual(x, x, table, ids), ops.gate_residual_(x.clone(), x, table, ids)]


def test_rows_of_frames() -> None:
    ids = torch.tensor([0, 2, 2, 1, 0, 1])
    for one, other in zip(per_frame(ids), per_frame(ids.int()), strict=True):
        assert torch.equal(one, other)
    for bad in (3, -1, 2**32, -(2**32), 2**63 - 1):  # 2^32 would be 0 in 32 bits
        with pytest.raises(TensorError, match="frame_ids"):
            per_frame(torch.tensor([0, bad, 2, 1, 0, 1]))


def test_slots_positions_and_pages() -> None:
    def results(dtype: torch.dtype) -> list[torch.Tensor]:
        qkv, slots = torch.arange(36.0).reshape(3, 12).sin(), torch.tensor([5, -1, 2], dtype=dtype)
        positions = torch.tensor([7, 8, 9], dtype=dtype)
        both = {"heads": 1, "frequencies": FREQUENCIES}
        k, v = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
        pool = torch.arange(96.0).reshape(2, 3, 1, 4, 4).sin()
        q = ops.norm_rope_write_(qkv, k, v, slots, positions, **both)
        ops.rotate_pages_(pool, positions[:1] - 6, positions[:1], FREQUENCIES)
        ops.copy_pages_(pool, pool.clone(), positions[:1] - 6, positions[1:2] - 6)
        made = ops.norm_rope_pages(qkv, slots, positions, num_pages=2, page_rows=4, **both)
        return [q, k, v, pool, *made, *ops.norm_rope(qkv, positions, **both)]

    for one, other in zip(results(torch.int32), results(torch.int64), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))])
def test_docstrings_name_every_argument(name: str) -> None:
    op = getattr(ops, name)
    arguments = inspect.signature(op).parameters
    listed = re.search(r"Args:\n(.*?)(\n\n|\Z)", op.__doc__ or "", re.DOTALL)
    if len(arguments) > 1:
        assert listed, f"{name} has no list of arguments"
        for argument in arguments:
            assert re.search(rf"\b{argument}\b", listed[1]), f"{name}: {argument}"


def test_one_warning_where_the_kernels_are_missing() -> None:
    code = """
import warnings, torch
from ardiff_engine import _native, ops
_native._load = lambda: (None, "the native module was not built")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ops.bias_gelu(torch.ones(2, 3))
    ops.philox_normal(torch.zeros(1, 5, dtype=torch.int64), 4)
assert [str(one.message).split(",")[0] for one in said] == ["the C++ kernels are missing"], said
"""
    subprocess.run([sys.executable, "-c", code], check=True)
