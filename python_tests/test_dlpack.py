# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries: anything with __dlpack__ goes in without a copy; in-place ops write to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ardiff_engine import ops
from ardiff_engine.errors import TensorError
from ardiff_engine.ops import checks


class Array:
    """What a CuPy array shows to torch: __dlpack__ and __dlpack_device__, and nothing else of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.memory = tensor
        self.exports = 0

    def __dlpack__(self, **options: Any) -> Any:
        self.exports += 1
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.memory.__dlpack_device__()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32])
def test_conversion_shares_the_memory(dtype: torch.dtype) -> None:
    memory = torch.arange(12).reshape(3, 4).to(dtype)[:, ::2]
    for convert in (checks.tensor, checks.optional, checks.writable):
        array = Array(memory)
        got = convert("x", array)
        assert got is not None and array.exports == 1
        assert got.data_ptr() == memory.data_ptr() and got.stride() == memory.stride() and got.dtype == dtype


def test_an_array_on_another_device_is_not_moved() -> None:
    x = np.zeros((2, 8), np.float32)
    ids = torch.zeros(2, dtype=torch.int32, device="meta")
    with pytest.raises(TensorError, match="frame_ids"):
        ops.modulate(x, x, x, ids)  # type: ignore[call-overload]


def every_op(wrap: Any) -> list[torch.Tensor]:
    """The results of all ops, with each array argument wrapped; in-place ops show what they wrote."""
    results: list[Any] = []
    table = ops.FrameTable.build([3], [[1, 0]], [[4, 2]])
    k, v = draw(1, 2, 1, 4, 8), draw(2, 2, 1, 4, 8)
    results += ops.frame_attention(wrap(draw(0, 3, 2, 8)), wrap(k), wrap(v), table, return_lse=True)
    frequencies = torch.tensor([1.0, 0.5, 0.1, 0.01], dtype=torch.float64)
    qkv, positions, slots = draw(3, 3, 32), torch.arange(3), torch.tensor([0, 5, -1])
    results += ops.norm_rope(
        wrap(qkv), wrap(positions), heads=2, kv_heads=1, norm="rms", q_weight=wrap(draw(4, 8)),
        frequencies=wrap(frequencies), qkv_bias=wrap(draw(5, 32)),
    )  # fmt: skip
    results.append(
        ops.norm_rope_write_(
            wrap(qkv),
            wrap(k),
            wrap(v),
            wrap(slots),
            wrap(positions),
            heads=2,
            kv_heads=1,
            frequencies=wrap(frequencies),
        )  # fmt: skip
    )
    x, rows, ids = draw(6, 3, 8), draw(7, 2, 8), torch.tensor([0, 1, 1], dtype=torch.int32)
    results.append(ops.modulate(wrap(x), wrap(rows), wrap(rows), wrap(ids)))
    results.append(ops.gate_residual(wrap(x), wrap(x), wrap(rows), wrap(ids), bias=wrap(rows[0])))
    ops.gate_residual_(wrap(x), wrap(draw(8, 3, 8)), wrap(rows), wrap(ids))
    keys, levels = torch.arange(15).reshape(3, 5), torch.rand(3, generator=torch.Generator().manual_seed(9))
    results.append(ops.philox_normal(wrap(keys), 6))
    results += ops.add_noise(wrap(draw(10, 3, 8)), wrap(levels), wrap(levels), keys=wrap(keys), target="flow")
    results += ops.add_noise(wrap(draw(10, 3, 8)), wrap(levels), wrap(levels), noise=wrap(x), target="v")
    results += ops.solver_step(
        wrap(draw(11, 3, 8)), wrap(draw(12, 1, 3, 8)), wrap(levels[None]), wrap(draw(13, 3, 7)),
        history1=wrap(x), history2=wrap(x), noise=wrap(x),
    )  # fmt: skip
    pool_k, pool_v = draw(14, 1, 3, 1, 4, 8), draw(15, 1, 3, 1, 4, 8)
    first, second = torch.tensor([0]), torch.tensor([2])
    ops.copy_pages_(wrap(pool_k), wrap(pool_v), wrap(first), wrap(second))
    ops.rotate_pages_(
        wrap(pool_k), wrap(second), wrap(first + 3), wrap(frequencies), source=wrap(draw(16, 1, 1, 1, 4, 8))
    )
    return [*results, k, v, x, pool_k, pool_v]


def in_place(pool: Any, ids: Any) -> list[Any]:
    """Each in-place op, with `pool` [1, 2, 1, 4, 8] or a part of it as what it writes to."""
    row, frequencies = draw(1, 4, 8), torch.ones(4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.int32)
    other = draw(2, 1, 2, 1, 4, 8)
    return [
        lambda: ops.gate_residual_(pool[0, 0, 0], row, row[:1], zero),
        lambda: ops.copy_pages_(pool, other, ids[:1], ids[1:]),
        lambda: ops.copy_pages_(other, pool, ids[:1], ids[1:]),
        lambda: ops.rotate_pages_(pool, ids[:1], ids[:1], frequencies),
        lambda: ops.norm_rope_write_(
            row[:2, :3], pool[0, :, :, :, :1], other[0, :, :, :, :1], ids, ids, heads=1
        ),
        lambda: ops.norm_rope_write_(
            row[:2, :3], other[0, :, :, :, :1], pool[0, :, :, :, :1], ids, ids, heads=1
        ),
    ]


@pytest.mark.parametrize("number", range(6))
def test_in_place_ops_refuse_read_only_arrays_before_they_write(number: int) -> None:
    memory, ids = draw(0, 1, 2, 1, 4, 8), torch.tensor([0, 1])
    frozen = memory.numpy().copy()
    frozen.flags.writeable = False
    in_place(memory.clone(), ids)[number]()  # the call itself is sound
    before = frozen.copy()
    with pytest.raises(TensorError, match="written in place: got .*read-only.*Pass a torch tensor"):
        in_place(frozen, ids)[number]()
    assert np.array_equal(frozen, before)


@pytest.mark.parametrize("convert", [checks.tensor, checks.writable])
def test_memory_that_is_not_aligned_to_its_values_is_refused(convert: Any) -> None:
    shifted = np.frombuffer(bytearray(17), np.uint8)[1:].view(np.float32)
    assert shifted.ctypes.data % 4 == 1
    with pytest.raises(TensorError, match="address of x: got 1 bytes beyond a multiple of 4, .*float32"):
        convert("x", shifted)


@pytest.mark.parametrize("wrap", [Array, lambda tensor: tensor.numpy()], ids=["dlpack", "numpy"])
def test_every_op_takes_arrays_and_writes_into_them(wrap: Any) -> None:
    for got, want in zip(every_op(wrap), every_op(lambda tensor: tensor), strict=True):
        assert isinstance(got, torch.Tensor) and torch.equal(got, want)


def test_every_array_on_another_device_is_refused() -> None:
    """One argument after the other goes to the device "meta". Only the keys of philox_normal stand alone."""
    calls: list[torch.Tensor] = []
    every_op(lambda tensor: calls.append(tensor) or tensor)
    alone = []
    for number in range(len(calls)):
        left = iter(range(len(calls)))
        wrap = lambda tensor, left=left, number=number: tensor.to("meta") if next(left) == number else tensor  # noqa: E731
        try:
            every_op(wrap)
        except TensorError as error:
            assert "meta" in str(error)
        else:
            alone.append(number)
    assert len(calls) > 40 and [tuple(calls[number].shape) for number in alone] == [(3, 5)]
