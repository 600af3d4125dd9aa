# SPDX-License-Identifier: Apache-2.0
"""The forward process of diffusion, one noise level per row, with the training target from the same pass.

    noisy = signal x0 + sigma eps
    target: "x0" x0;  "eps" eps;  "v" signal eps - sigma x0 (Salimans and Ho 2022);  "flow" eps - x0

eps is given, or generated in registers from counter keys (see `philox_normal`) so that it never exists in
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ardiff_engine.errors import ConfigError, TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import device, floating, optional, same, tensor
from ardiff_engine.ops.cuda_launch import address, launch_for
from ardiff_engine.ops.dispatch import needs_grad, watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.noise_keys import check_keys
from ardiff_engine.ops.philox_normal import philox_normal

TARGETS = ("x0", "eps", "v", "flow")
_COMPUTED = ("", "eps", "v", "flow")


class AddNoiseResult(NamedTuple):
    """`noisy` and `target` are shaped like x0; `target` is None where none was asked for."""

    noisy: torch.Tensor
    target: torch.Tensor | None


def add_noise(
    x0: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    *,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    target: str | None = None,
) -> AddNoiseResult:
    """signal[i] * x0[i] + sigma[i] * eps[i] for every row i of x0 [N, ...], and the target of that name.

    Half precision is computed in float32. Differentiable where an input requires a gradient (PyTorch
    reference).

    Args:
        x0: [N, ...], floating point.
        signal, sigma: [N], floating point.
        noise: eps, like x0; exactly one of noise and keys is given.
        keys: int64 [N, 5], see `noise_keys`: eps is drawn; element e of a row counts its trailing
            dimensions in order.
        target: "x0", "eps", "v" or "flow"; None: none.

    Raises:
        ConfigError: an unknown target, or not exactly one of noise and keys.
        TensorError: a wrong shape, dtype or device.
    """
    if target is not None and not (isinstance(target, str) and target in TARGETS):
        raise ConfigError(
            explain("target", got=repr(target), expected=" or ".join(TARGETS), fix="Pass one of these.")
        )
    if (noise is None) == (keys is None):
        given = "neither" if noise is None else "both"
        raise ConfigError(
            explain("noise and keys", got=given, expected="exactly one", fix="Pass one of the two.")
        )
    x0, signal, sigma = tensor("x0", x0), tensor("signal", signal), tensor("sigma", sigma)
    noise, keys = optional("noise", noise), optional("keys", keys)
    floating("x0", x0)
    rows = x0.shape[0] if x0.dim() else -1
    for name, value in (("signal", signal), ("sigma", sigma)):
        if value.dim() != 1 or value.shape[0] != rows or not value.is_floating_point():
            raise TensorError(
                explain(
                    name,
                    got=f"{value.dtype} {list(value.shape)}",
                    expected=f"floating point [{max(rows, 0)}], x0 is {list(x0.shape)}",
                    fix="Pass one value per row of x0.",
                )
            )
        device(name, value, x0.device)
    if keys is not None:
        keys = check_keys(keys, rows, x0.device)
    if noise is not None:
        same("noise", noise, "x0", x0)
        if noise.shape != x0.shape:
            raise TensorError(
                explain(
                    "shape of noise", got=list(noise.shape), expected=list(x0.shape), fix="Draw it like x0."
                )
            )
    inputs = (x0, signal, sigma, noise)
    if needs_grad(*inputs):
        noisy, wanted = reference_add_noise(x0, signal, sigma, noise, keys, target or "")
        return AddNoiseResult(noisy, wanted if target else None)
    given_target = {"x0": x0, "eps": noise}.get(target or "")
    computed = "" if target is None or given_target is not None else target
    run = torch.ops.ardiff.add_noise if watched(*inputs, keys) else _run
    noisy, wanted = run(x0, signal, sigma, noise, keys, computed)
    return AddNoiseResult(noisy, wanted if computed else given_target)


@without_autocast
def reference_add_noise(
    x0: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    target: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification in PyTorch: (noisy, target); the target is empty for ""."""
    wide = torch.promote_types(x0.dtype, torch.float32)
    clean = x0.to(wide)
    if keys is not None:
        noise = philox_normal(keys, x0[0].numel() if x0.shape[0] else 0).reshape(x0.shape)
    assert noise is not None  # one of the two is there
    eps = noise.to(wide)
    column = (-1, *[1] * (x0.dim() - 1))
    signal, sigma = signal.to(wide).reshape(column), sigma.to(wide).reshape(column)
    noisy = signal * clean + sigma * eps
    if target == "v":
        wanted = signal * eps - sigma * clean
    else:
        wanted = {"": x0.new_empty(0), "x0": clean, "eps": eps, "flow": eps - clean}[target]
    return noisy.to(x0.dtype), wanted.to(x0.dtype)


def _run(
    x0: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    target: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    backend = choose("add_noise", x0, noise).name
    if backend == "reference":
        return reference_add_noise(x0, signal, sigma, noise, keys, target)
    if backend == "triton":
        noisy, wanted = triton_kernel("add_noise")(x0, signal, sigma, noise, keys, target)
        return noisy, wanted
    x0 = x0.contiguous()
    signal, sigma = signal.to(torch.float32).contiguous(), sigma.to(torch.float32).contiguous()
    noise = None if noise is None else noise.contiguous()
    noisy, wanted = torch.empty_like(x0), x0.new_empty(x0.shape if target else (0,))
    rows = x0.shape[0]
    arguments = (
        x0.data_ptr(),
        signal.data_ptr(),
        sigma.data_ptr(),
        address(noise),
        address(keys),
        noisy.data_ptr(),
        wanted.data_ptr() if target else 0,
        rows,
        x0.numel() // max(rows, 1),
        _COMPUTED.index(target),
    )
    if backend == "cpu":
        kernels().add_noise(*arguments)
    else:
        launch_for("add_noise", x0, *arguments)
    return noisy, wanted


@torch.library.custom_op("ardiff::add_noise", mutates_args=())
def _add_noise_op(
    x0: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    target: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _run(x0, signal, sigma, noise, keys, target)


@_add_noise_op.register_fake
def _add_noise_fake(
    x0: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    target: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape if target else (0,))
