# SPDX-License-Identifier: Apache-2.0
"""The average follows d_1 = 0, d_n = min(decay, n / (n + 9)), and its counter survives saving."""

from __future__ import annotations

import torch
from torch import nn

from ardiff_engine.training.ema import Ema


def _set(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)


def test_matches_the_recursion_in_float64() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    ema = Ema(module, 0.5)
    expected = float(module.weight.detach())
    for n in range(1, 40):
        value = float(n * n % 7)
        _set(module, value)
        ema.update(module)
        decay = 0.0 if n == 1 else min(0.5, n / (n + 9))
        expected -= (1 - decay) * (expected - value)
        assert abs(float(ema.shadow["weight"]) - expected) < 1e-12


def test_first_update_copies_and_the_cap_holds() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.9999)
    _set(module, 3.0)
    ema.update(module)
    assert torch.equal(ema.shadow["weight"], module.weight)
    assert ema.decay_of(2) == 2 / 11 and ema.decay_of(10**6) == 0.9999


def test_counter_is_restored() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, 0.9999)
    for _ in range(5):
        ema.update(module)
    other = Ema(module, 0.9999)
    other.shadow, other.updates = {"weight": ema.shadow["weight"].clone()}, ema.updates
    _set(module, 9.0)
    ema.update(module)
    other.update(module)
    assert torch.equal(ema.shadow["weight"], other.shadow["weight"])


def test_exchange_twice_is_nothing() -> None:
    module = nn.Linear(3, 3)
    ema = Ema(module, 0.5)
    _set(module, 1.0)
    before = module.weight.clone(), ema.shadow["weight"].clone()
    ema.exchange(module)
    assert torch.equal(module.weight, before[1]) and torch.equal(ema.shadow["weight"], before[0])
    ema.exchange(module)
    assert torch.equal(module.weight, before[0]) and torch.equal(ema.shadow["weight"], before[1])
