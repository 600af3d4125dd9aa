# SPDX-License-Identifier: Apache-2.0
"""Every public op with ARDIFF_BACKEND=triton equals the reference: the kernels are reached, with their own
arguments in their own order, and gradients flow through them. Limit: relative L2 1e-5, integers equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine import ops

Tensors = tuple[torch.Tensor, ...]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(device: str) -> Tensors:
    table = ops.FrameTable.build([[3, 2], [4]], [[2, 0], [1]], [[5, 3], [5]], [[1, 2], [1]], device=device)
    inputs = [
        draw(i, *shape).to(device).requires_grad_()
        for i, shape in enumerate([(9, 2, 8), *[(3, 1, 5, 8)] * 2])
    ]
    o, lse = ops.frame_attention(*inputs, table, return_lse=True)
    return (o, lse, *torch.autograd.grad(o.square().sum() + lse.sum(), inputs))


def frame_rows(device: str) -> Tensors:
    ids = torch.tensor([0, 2, 2, 1, 0], dtype=torch.int32, device=device)
    x, branch = (draw(i, 5, 24).to(device).requires_grad_() for i in range(2))
    table, bias = draw(2, 3, 3, 24).to(device).requires_grad_(), draw(3, 24).to(device).requires_grad_()
    y, normed = ops.modulate(x, table[:, 0], table[:, 1], ids, return_normed=True)
    out = ops.gate_residual(normed, y * branch, table[:, 2], ids, bias=bias)
    grads = torch.autograd.grad(out.square().sum(), (x, branch, table, bias))
    in_place = x.detach().clone()
    ops.gate_residual_(in_place, branch.detach(), table[:, 2].detach(), ids)
    return (y, normed, out, in_place, *grads)


def trained(device: str) -> Tensors:
    """norm_rope_pages, norm_rope and bias_gelu, and the gradients of all that they have gradients of."""
    qkv, bias = draw(0, 5, 32).to(device).requires_grad_(), draw(1, 32).to(device).requires_grad_()
    ids = torch.tensor([3, 0, -1, 5, 1], device=device)
    results: list[torch.Tensor] = []
    for norm, q, k in (("layer", 8, 8), ("rms_full", 16, 8)):
        weights = [draw(i, n).to(device).requires_grad_() for i, n in enumerate((q, q, k, k))]
        named = dict(zip(("q_weight", "q_bias", "k_weight", "k_bias"), weights, strict=True))
        frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64, device=device)
        paged = ops.norm_rope_pages(
            qkv, ids, ids.abs(), num_pages=3, page_rows=2, heads=2, kv_heads=1, norm=norm,
            frequencies=frequencies, **named,
        )  # fmt: skip
        plain = ops.norm_rope(
            qkv, ids.abs(), heads=2, kv_heads=1, norm=norm, frequencies=frequencies, qkv_bias=bias, **named
        )
        for outs, leaves in ((paged, (qkv, *weights)), (plain, (qkv, *weights, bias))):
            loss = sum(((i + 1) * o**3).sum() for i, o in enumerate(outs))
            results += [*outs, *torch.autograd.grad(loss, leaves)]
    y = ops.bias_gelu(qkv, bias)
    return (*results, y, *torch.autograd.grad(y.square().sum(), (qkv, bias)))


def page_pool(device: str) -> Tensors:
    k, v = (torch.zeros(2, 3, 2, 4, 8, device=device) for _ in range(2))
    slots, positions = torch.tensor([3, -1, 5], device=device), torch.tensor([0, 7, 900], device=device)
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64, device=device)
    q = ops.norm_rope_write_(
        draw(0, 3, 64).to(device), k[1], v[1], slots, positions, heads=4, kv_heads=2, norm="rms",
        q_weight=draw(1, 8).to(device), frequencies=frequencies,
    )  # fmt: skip
    first, last = torch.tensor([0], device=device), torch.tensor([2], device=device)
    ops.copy_pages_(k, v, first, last)
    ops.rotate_pages_(k, last, first + 5, frequencies)
    ops.pool_pages_(k, first[None] + 1, last * k.shape[-2] + 1)
    return q, k, v


def noise(device: str) -> Tensors:
    keys = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], device=device)
    x, levels = draw(0, 2, 3, 5).to(device), torch.tensor([0.3, 0.8], device=device)
    noised = ops.add_noise(x, levels, 1 - levels, keys=keys, target="v")
    assert noised.target is not None
    rows, outs = draw(1, 2, 7).to(device), draw(2, 2, 2, 3, 5).to(device)
    step = ops.solver_step(x, outs, levels.repeat(2, 1), rows, history1=x, history2=x, keys=keys)
    times = ops.sample_timesteps(3, 4, 50, "fopp", seed=3, device=device)
    return (ops.philox_normal(keys, 9), noised.noisy, noised.target, *step, times)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("calls", [attention, frame_rows, trained, page_pool, noise])
def test_public_ops(calls: Callable[[str], Tensors], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    want = calls(device)
    monkeypatch.setenv("ARDIFF_BACKEND", "triton")
    got = calls(device)
    ops.check_device(device)  # nothing of that was out of range
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
        if not one.is_floating_point():
            assert torch.equal(one, other)
        else:
            assert (one - other).detach().norm() <= 1e-5 * other.detach().norm()
