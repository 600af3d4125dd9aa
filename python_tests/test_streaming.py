# SPDX-License-Identifier: Apache-2.0
"""Results that are larger than the caches are streamed past them: the same bits as with ordinary stores, for
every alignment, width and number of threads. The cache is made 0 bytes large, so that small results stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine._native import native
from ardiff_engine.ops.add_noise import add_noise
from ardiff_engine.ops.gate_residual import gate_residual
from ardiff_engine.ops.modulate import modulate
from ardiff_engine.ops.solver_step import solver_step

THREADS = 3


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    native().set_cache_size(-1)


def same_bits(call: Callable[[], tuple[torch.Tensor, ...]]) -> None:
    """Of all results, with 1 and with 3 threads."""
    torch.set_num_threads(1)
    native().set_cache_size(2**62)
    expected = call()
    native().set_cache_size(0)
    for threads in (1, THREADS):
        torch.set_num_threads(threads)
        for one, other in zip(expected, call(), strict=True):
            assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def rows(tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.randn(-(-tokens // 8), width)
    return table, (torch.arange(tokens) // 8).int()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("tokens", "width"), [(2000, 64), (999, 112), (500, 50), (3, 16)])
def test_rows(tokens: int, width: int) -> None:
    x, y = torch.randn(2, tokens, width)
    table, ids = rows(tokens, width)
    for norm in ("layer", "none"):
        same_bits(lambda norm=norm: modulate(x, table, table + 1, ids, norm=norm, return_normed=True))
        same_bits(lambda norm=norm: (modulate(x, table, table + 1, ids, norm=norm),))
    same_bits(lambda: (gate_residual(x, y, table, ids),))
    same_bits(lambda: (gate_residual(x, y, table, ids, bias=x[0]),))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("count", "elements"), [(30, 8192), (9, 1024 + 48), (5, 4097), (2, 4)])
def test_noise(count: int, elements: int) -> None:
    x, outs = torch.randn(count, elements), torch.randn(2, count, elements)
    weights, coefficients = torch.randn(2, count), torch.randn(count, 7)
    coefficients[:, 5:] = 0
    keys = torch.arange(5 * count).reshape(-1, 5)
    for target in ("v", "flow"):
        same_bits(lambda t=target: add_noise(x, weights[0], weights[1], keys=keys, target=t))
        same_bits(lambda t=target: add_noise(x, weights[0], weights[1], noise=outs[0], target=t))
    same_bits(lambda: add_noise(x, weights[0], weights[1], keys=keys)[:1])
    same_bits(lambda: solver_step(x, outs, weights, coefficients, keys=keys))
