# SPDX-License-Identifier: Apache-2.0
"""Normal noise from a counter: Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as
1, 2, 3") and Box-Muller.

For the key row (seed, stream, frame, purpose, step) and element e:

    words = philox4x32_10(counter=(e // 4, frame, stream, purpose << 24 | step), key=(seed low, seed high))
    (a, b) = words 0, 1 for e % 4 in {0, 1}, words 2, 3 for e % 4 in {2, 3}
    u1 = fma(float32(a), 2^-32, 2^-33);  u2 = fma(float32(b), 2^-32, 2^-33);  r = sqrt(-2 ln u1)
    z = r cos(2 pi u2) for even e, r sin(2 pi u2) for odd e

The words and u1, u2 are the same bits on every device; z agrees to float32 rounding (2e-6).
"""

from __future__ import annotations

import math

import torch

from ardiff_engine.arguments import integer
from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.cuda_launch import launch
from ardiff_engine.ops.dispatch import watched
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.noise_keys import check_keys

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_ROUNDS = 10


def philox_normal(keys: torch.Tensor, elements: int) -> torch.Tensor:
    """Standard normal noise, float32 [N, elements] on the device of `keys`.

    Row i depends on `keys[i]` only, and its first m values do not depend on `elements`.

    Args:
        keys: int64 [N, 5], see `noise_keys`.
        elements: numbers per row.

    Raises:
        TensorError: keys of another form, or `elements` out of range.
    """
    keys, elements = check_keys(keys), integer("elements", elements)
    if not 0 <= elements <= 4 * _MASK:
        raise TensorError(
            explain(
                "Bad number of noise elements",
                got=elements,
                expected="0..2^34",
                fix="Split the row over frames.",
            )
        )
    if watched(keys):
        return torch.ops.ardiff.philox_normal(keys, elements)
    return _run(keys, elements)


def reference_philox_normal(keys: torch.Tensor, elements: int) -> torch.Tensor:
    """The specification in PyTorch: words in int64, Box-Muller in float64, rounded once to float32."""
    seed, stream, frame, purpose, step = keys[:, :, None].unbind(1)
    block = torch.arange(-(-elements // 4), dtype=torch.int64, device=keys.device)[None]
    words = reference_philox(
        (block, frame & _MASK, stream & _MASK, ((purpose & 0xFF) << 24) | (step & 0xFFFFFF)),
        (seed & _MASK, (seed >> 32) & _MASK),
    )
    uniform = (words.to(torch.float32).double() * 2.0**-32 + 2.0**-33).to(torch.float32).double()
    u1, u2 = uniform[..., 0::2], uniform[..., 1::2]
    radius = (-2.0 * u1.log()).sqrt()
    angle = 2.0 * math.pi * u2
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return normal.flatten(1)[:, :elements].to(torch.float32)


def reference_philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Philox4x32-10 on int64 tensors that hold 32-bit words and broadcast together: -> int64 [..., 4]."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIER_0, c0)
        high1, low1 = _multiply(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def _multiply(multiplier: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a product of 32-bit words. In halves: the product would overflow int64."""
    low = words * (multiplier & 0xFFFF)
    high = words * (multiplier >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _run(keys: torch.Tensor, elements: int) -> torch.Tensor:
    out = torch.empty(keys.shape[0], elements, dtype=torch.float32, device=keys.device)
    backend = choose("philox_normal", out).name
    if backend == "reference":
        return reference_philox_normal(keys, elements)
    if backend == "triton":
        normal: torch.Tensor = triton_kernel("philox_normal")(keys, elements)
        return normal
    arguments = (keys.data_ptr(), out.data_ptr(), keys.shape[0], elements)
    if backend == "cpu":
        kernels().philox_normal(*arguments)
    else:
        launch("philox_normal", out.device, *arguments)
    return out


@torch.library.custom_op("ardiff::philox_normal", mutates_args=())
def _philox_normal_op(keys: torch.Tensor, elements: int) -> torch.Tensor:
    return _run(keys, elements)


@_philox_normal_op.register_fake
def _philox_normal_fake(keys: torch.Tensor, elements: int) -> torch.Tensor:
    return keys.new_empty(keys.shape[0], elements, dtype=torch.float32)
