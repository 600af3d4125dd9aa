# SPDX-License-Identifier: Apache-2.0
"""Rows of a linear layer do not depend on their neighbours, and are those of nn.Linear."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ardiff_engine.models.row_linear import RowLinear


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [(192, 576), (768, 192), (1536, 384), (4, 96), (192, 4), (192, 16), (100, 30), (1000, 77), (1152, 640)],
)
def test_a_row_is_the_same_in_any_batch(threads, inner, outer):
    torch.manual_seed(0)
    layer = RowLinear(inner, outer)
    x = torch.randn(700, inner)
    with torch.no_grad():
        whole = layer(x)
        for count in (*range(1, 40), 64, 72, 81, 96, 128, 256, 520):
            for first in (0, 5, 32):
                assert torch.equal(layer(x[first : first + count]), whole[first : first + count]), count


def test_values_shapes_and_gradients_are_those_of_a_linear_layer():
    torch.manual_seed(0)
    layer, x = RowLinear(24, 40, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
    expected = x @ layer.weight.t() + layer.bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        assert layer(x[:, :0]).shape == (2, 0, 40)
        assert all(RowLinear(24, n)(torch.randn(7, 24)).is_contiguous() for n in (5, 40, 96, 100, 192))
        assert RowLinear(24, 3, bias=False, dtype=torch.float64)(x).shape == (2, 7, 3)
    assert torch.autograd.gradcheck(lambda t: layer(t), x.requires_grad_(True))


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_also_with_the_other_kernels_of_mkl(instructions):
    """MKL picks its kernels once per process; the setting never asks for more than the processor has."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "in_any_batch"]
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
