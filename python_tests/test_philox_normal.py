# SPDX-License-Identifier: Apache-2.0
"""Philox words against the published vectors; kernel noise within 2e-6 of the float64 Box-Muller;
independence of batching, length and threads."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import TensorError
from ardiff_engine.ops.philox_normal import philox_normal, reference_philox, reference_philox_normal

LIMIT = 2e-6


def random_keys(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)]
    columns += [torch.randint(0, 2**bits, (rows,), generator=generator) for bits in (32, 32, 8, 24)]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_words_equal_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], expected: str
) -> None:
    c0, c1, c2, c3 = (torch.tensor(c) for c in counter)
    words = reference_philox((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert " ".join(f"{word:08x}" for word in words.tolist()) == expected


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("elements", [0, 1, 3, 4, 15, 63, 64, 65, 128, 4096, 4097, 50_001])
def test_kernel_equals_reference(elements: int) -> None:
    keys = random_keys(5)
    noise, expected = philox_normal(keys, elements), reference_philox_normal(keys, elements)
    assert noise.shape == (5, elements) and noise.dtype == torch.float32
    if elements:
        assert (noise - expected).abs().max().item() <= LIMIT


def test_kernel_and_reference_are_two_implementations() -> None:
    """Float32 polynomials cannot equal rounded float64 results everywhere: equality would mean a comparison
    of the reference with itself."""
    keys = random_keys(4)
    assert not torch.equal(philox_normal(keys, 100_000), reference_philox_normal(keys, 100_000))


@pytest.mark.usefixtures("isa")
def test_rows_depend_on_their_key_only() -> None:
    keys = random_keys(7)
    together = philox_normal(keys, 1000)
    assert torch.equal(together[:, :129], philox_normal(keys, 129))
    for row in range(7):
        assert torch.equal(together[row : row + 1], philox_normal(keys[row : row + 1], 1000))
    assert torch.equal(together.flip(0), philox_normal(keys.flip(0), 1000))


@pytest.mark.parametrize("column", range(5))
def test_every_key_column_matters(column: int) -> None:
    keys = torch.tensor([[1, 2, 3, 4, 5]])
    other = keys.clone()
    other[0, column] += 1
    correlation = (philox_normal(keys, 20_000) * philox_normal(other, 20_000)).mean().item()
    assert abs(correlation) < 0.04
    if column == 0:
        other[0, 0] = 1 + 2**40
        assert not torch.equal(philox_normal(keys, 8), philox_normal(other, 8))


def test_distribution() -> None:
    noise = philox_normal(random_keys(64), 20_000).double().flatten()
    assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var().item() - 1) < 5 * (2 / noise.numel()) ** 0.5
    assert abs((noise**4).mean().item() - 3) < 5 * (96 / noise.numel()) ** 0.5
    pairs = noise.reshape(-1, 4)
    for i in range(4):
        for j in range(i):
            assert abs((pairs[:, i] * pairs[:, j]).mean().item()) < 5 / pairs.shape[0] ** 0.5


def test_threads_do_not_change_a_bit() -> None:
    keys, before = random_keys(16), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = philox_normal(keys, 30_000)
        torch.set_num_threads(3)
        assert torch.equal(one, philox_normal(keys, 30_000))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "keys", [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 5), torch.zeros(5, dtype=torch.int64)]
)
def test_wrong_keys(keys: torch.Tensor) -> None:
    with pytest.raises(TensorError, match="noise keys"):
        philox_normal(keys, 4)
    with pytest.raises(TensorError, match="elements"):
        philox_normal(torch.zeros(1, 5, dtype=torch.int64), -1)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.ardiff.philox_normal.default, (random_keys(3), 10))
