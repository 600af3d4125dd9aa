# SPDX-License-Identifier: Apache-2.0
"""Page copies are bit-exact and touch nothing else; rotating K from position p by delta equals writing it at
p + delta (within 2e-6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import PageTableError, TensorError
from ardiff_engine.ops.norm_rope import rotate
from ardiff_engine.ops.pages import copy_pages_, rotate_pages_

LAYERS, POOL, HEADS, ROWS = 3, 9, 2, 5


def pool(dim: int = 10) -> torch.Tensor:
    torch.manual_seed(dim)
    return torch.randn(2, LAYERS, POOL, HEADS, ROWS, dim)


def ids(*pages: int) -> torch.Tensor:
    return torch.tensor(pages, dtype=torch.int64)


def frequencies(dim: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def turned(k: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    angle = (positions.double()[:, None] * frequencies(k.shape[-1]))[:, None, None]
    return rotate(k.double(), angle.cos(), angle.sin())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", [2, 10, 72])
def test_copy(dim: int) -> None:
    k, v = pool(dim)
    before_k, before_v = k.clone(), v.clone()
    copy_pages_(k, v, ids(0, 0, 4), ids(7, 2, 1))
    for now, before in ((k, before_k), (v, before_v)):
        assert torch.equal(now[:, [7, 2, 1]], before[:, [0, 0, 4]])
        assert torch.equal(now[:, [0, 3, 4, 5, 6, 8]], before[:, [0, 3, 4, 5, 6, 8]])
    copy_pages_(k, v, ids(), ids())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_copy_other_dtypes(dtype: torch.dtype) -> None:
    k, v = pool().to(dtype)
    copy_pages_(k, v, ids(3), ids(5))
    assert torch.equal(k[:, 3], k[:, 5]) and torch.equal(v[:, 3], v[:, 5])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", [2, 10, 72, 128])
@pytest.mark.parametrize("from_source", [False, True])
def test_rotation_moves_keys(dim: int, from_source: bool) -> None:
    k = pool(dim)[0]
    plain = k.clone()
    pages, start, delta = ids(6, 0, 3), ids(5, 1000, 77), ids(-3, 2**31 - 1, 0)
    k[:, pages] = turned(plain[:, pages], start).float()
    written = k.clone()
    if from_source:
        rotate_pages_(k, pages, start + delta, frequencies(dim), source=plain[:, pages])
        limit = 2e-6
    else:
        rotate_pages_(k, pages, delta, frequencies(dim))
        limit = 4e-6
    # Positions as large as these only add up exactly to the last bits of the float64 product.
    expected = turned(plain[:, pages], start + delta)
    assert (k[:, pages].double() - expected).abs().max() <= limit
    others = [1, 2, 4, 5, 7, 8]
    assert torch.equal(k[:, others], written[:, others])


@pytest.mark.usefixtures("isa")
def test_source_may_be_a_strided_view() -> None:
    k, side = pool()[0], torch.randn(LAYERS, 6, HEADS, ROWS, 10)
    rotate_pages_(k, ids(2, 8), ids(4, 9), frequencies(10), source=side[:, 3:5])
    assert (k[:, [2, 8]].double() - turned(side[:, 3:5], ids(4, 9))).abs().max() <= 2e-6


def test_a_move_there_and_back() -> None:
    k = pool(72)[0]
    before = k.clone()
    rotate_pages_(k, ids(1, 2), ids(500, -20), frequencies(72))
    rotate_pages_(k, ids(1, 2), ids(-500, 20), frequencies(72))
    assert (k - before).abs().max() <= 2e-6 and not torch.equal(k, before)


def test_wrong_pages_change_nothing() -> None:
    k, v = pool()
    before = torch.stack([k, v]).clone()
    for src, dst in ((ids(0), ids(POOL)), (ids(-1), ids(1)), (ids(0, 1), ids(2, 2)), (ids(0, 1), ids(1, 2))):
        with pytest.raises(PageTableError):
            copy_pages_(k, v, src, dst)
    for pages in (ids(POOL, 0), ids(0, -1), ids(3, 3)):
        with pytest.raises(PageTableError):
            rotate_pages_(k, pages, ids(1, 1), frequencies(10))
    assert torch.equal(torch.stack([k, v]), before)


def test_wrong_arguments() -> None:
    k, v = pool()
    with pytest.raises(TensorError):
        copy_pages_(k[0], v[0], ids(0), ids(1))
    with pytest.raises(TensorError):
        copy_pages_(k, v[:, :3], ids(0), ids(1))
    with pytest.raises(TensorError):
        copy_pages_(k, v, ids(0), ids(1, 2))
    with pytest.raises(TensorError):
        copy_pages_(k.transpose(2, 3), v.transpose(2, 3), ids(0), ids(1))
    with pytest.raises(TensorError):
        rotate_pages_(k, ids(0), ids(1, 2), frequencies(10))
    with pytest.raises(TensorError):
        rotate_pages_(k, ids(0), ids(1), frequencies(8))
    with pytest.raises(TensorError):
        rotate_pages_(k, ids(0), ids(1), frequencies(10), source=k[:, :2])


def test_opcheck() -> None:
    k, v = pool()
    torch.library.opcheck(torch.ops.ardiff.copy_pages_.default, (k, v.clone(), ids(0, 1), ids(2, 3)))
    arguments = (ids(0, 1), ids(2, 3), frequencies(10))
    torch.library.opcheck(torch.ops.ardiff.rotate_pages_.default, (k, *arguments, None))
    torch.library.opcheck(torch.ops.ardiff.rotate_pages_.default, (k, *arguments, v[:, :2].clone()))


def test_arrays_of_other_libraries() -> None:
    k, v = np.random.default_rng(0).normal(size=(2, 2, 4, 1, 3, 4)).astype(np.float32)
    k_before, v_before = k.copy(), v.copy()
    copy_pages_(k, v, np.array([0]), np.array([3]))
    assert np.array_equal(k[:, 3], k_before[:, 0]) and np.array_equal(v[:, 3], v_before[:, 0])
    rotate_pages_(k, np.array([3]), np.array([5]), np.array([1.0, 0.1]))
    assert np.array_equal(k[:, 0], k_before[:, 0]) and not np.allclose(k[:, 3], k_before[:, 0])
    k.flags.writeable = False
    with pytest.raises(TensorError, match="k_pages"):
        copy_pages_(k, v, np.array([0]), np.array([3]))
