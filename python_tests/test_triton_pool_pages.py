# SPDX-License-Identifier: Apache-2.0
"""The Triton kernel of pool_pages_ against its reference in float64."""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine.errors import PageTableError
from ardiff_engine.kernels.triton import pool_pages
from ardiff_engine.ops import check_device
from ardiff_engine.ops.pool_pages import reference_pool_pages_

# Triton's interpreter cuts bits off where a GPU rounds to the nearest bfloat16.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
SOURCES = torch.tensor([[0, 7, 2], [19, -1, 3], [-1, -1, 4], [-1, -1, -1]])
TARGETS = torch.tensor([9, 10, 16, 12])


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("layers", [None, 1, 3])
@pytest.mark.parametrize("dim", [1, 10])
def test_sums(device: str, dtype: torch.dtype, layers: int | None, dim: int) -> None:
    pages = draw(0, 3, 4, 2, 5, dim).to(dtype)
    weights = None if layers is None else draw(1, layers, 3, 2, dim)
    made, wanted = pages.to(device, copy=True), pages.double()
    own = None if weights is None else weights.to(device)
    pool_pages.run(made, SOURCES.to(device), TARGETS.to(device), own)
    reference_pool_pages_(wanted, SOURCES, TARGETS, weights)
    error = (made.cpu().double() - wanted).abs()
    assert bool((error <= LIMITS[dtype] * wanted.abs() + 2e-6).all())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("source", "target"), [(-2, 9), (20, 9), (0, -1), (0, 20)])
def test_rows_outside_are_left_alone_and_reported(device: str, source: int, target: int) -> None:
    pages = draw(0, 2, 4, 1, 5, 4)
    made = pages.to(device, copy=True)
    sources, targets = torch.tensor([[1, source], [2, 3]]), torch.tensor([target, 11])
    pool_pages.run(made, sources.to(device), targets.to(device), None)
    with pytest.raises(PageTableError, match="pool_pages_"):
        check_device(made.device)
    mean = (pages[:, 0, :, 2] + pages[:, 0, :, 3]) / 2
    torch.testing.assert_close(made[:, 2, :, 1].cpu(), mean)
    made[:, 2, :, 1] = pages[:, 2, :, 1].to(device)
    assert torch.equal(made.cpu(), pages)
