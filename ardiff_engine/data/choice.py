# SPDX-License-Identifier: Apache-2.0
"""Random choices that depend on a key and a sample id only, so that data order needs no state and no worker
seeds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, purpose: int, sample: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) from Philox4x64 with key = (seed, purpose) and counter = sample."""
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    counter = np.array([0, 0, 0, sample % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)


def below(share: float, limit: int) -> int:
    """The integer in 0 .. limit - 1 that a number in [0, 1) stands for."""
    return min(limit - 1, int(share * limit))


def shuffled(seed: int, purpose: int, sample: int, count: int) -> int:
    """The item in 0 .. count - 1 that a sample id draws: each once in `count` samples, in an order of its own
    each time."""
    epoch, place = divmod(sample, count)
    return int(_order(seed, purpose, epoch, count)[place])


@lru_cache(maxsize=4)
def _order(seed: int, purpose: int, epoch: int, count: int) -> NDArray[np.int64]:
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    # The third word of the counter is 0 in `uniform`, so that no sample id meets an epoch.
    counter = np.array([0, 0, 1, epoch % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(count)
