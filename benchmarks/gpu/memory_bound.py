# SPDX-License-Identifier: Apache-2.0
"""The ops that are limited by memory, beside the same in PyTorch, one kernel after the other.

    python benchmarks/gpu/memory_bound.py

Shapes of one chunk of Wan 2.1 1.3B at 480x832: 3 frames of 1560 tokens, width 1536, 12 heads, pages of 112
rows, 30 layers; bfloat16, latents float32. Bars: 80 % of the copy rate, 3 times as fast as PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from case import FLOAT_LIMIT, Case, backend_of, main
from torch.nn.functional import layer_norm, rms_norm

from ardiff_engine import ops

SHARE, TIMES = 0.8, 3.0


@dataclass(frozen=True, slots=True)
class Shape:
    frames: int = 3
    tokens: int = 1560
    heads: int = 12
    dim: int = 128
    page_rows: int = 112
    layers: int = 30
    latents: int = 99_840


def cases(shape: Shape, device: str, dtype: torch.dtype) -> Iterator[Case]:
    frames, tokens, width = shape.frames, shape.frames * shape.tokens, shape.heads * shape.dim
    random = torch.Generator(device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*size, generator=random, device=device, dtype=dtype)

    x, branch = normal(tokens, width), normal(tokens, width)
    bias, table = normal(width), normal(frames + 1, 3 * width)
    shift, scale, gate = table.split(width, dim=1)
    ids = (torch.arange(tokens, device=device) * frames // tokens).int()
    name = f"{tokens} x {width}"

    yield Case(
        "modulate",
        name,
        lambda: ops.modulate(x, shift, scale, ids),
        variant=backend_of("modulate", x),
        opponents={
            "PyTorch": lambda: (
                layer_norm(x.float(), (width,), eps=1e-6) * (1 + scale.float()[ids]) + shift.float()[ids]
            ).to(dtype)
        },
        bars={"PyTorch": TIMES},
        moved=2 * x.nbytes,
        share_bar=SHARE,
    )
    yield Case(
        "gate_residual_",
        name,
        lambda: ops.gate_residual_(x, branch, gate, ids, bias=bias),
        variant=backend_of("gate_residual", x),
        written=(x,),
        opponents={"PyTorch": lambda: x.add_(gate[ids] * (branch + bias))},
        bars={"PyTorch": TIMES},
        moved=3 * x.nbytes,
        share_bar=SHARE,
    )
    yield from _norm_rope_write(shape, normal(tokens, 3 * width), normal(width))
    yield from _pages(shape, normal)
    yield from _latents(shape, normal)


def _norm_rope_write(shape: Shape, qkv: torch.Tensor, weight: torch.Tensor) -> Iterator[Case]:
    device, heads, dim, rows = qkv.device, shape.heads, shape.dim, shape.page_rows
    tokens, width = len(qkv), heads * dim
    positions = torch.arange(tokens, device=device)
    pages = -(-shape.tokens // rows)
    slots = positions // shape.tokens * pages * rows + positions % shape.tokens
    k_pages, v_pages = (qkv.new_zeros(shape.frames * pages, heads, rows, dim) for _ in "kv")
    frequencies = _frequencies(dim, device)
    angles = positions[:, None].double() * frequencies
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]

    def turned(part: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(part.float(), (width,), weight.float(), 1e-6).view(tokens, heads, dim // 2, 2)
        return torch.view_as_real(torch.view_as_complex(normed) * turns).flatten(2).to(qkv.dtype)

    def unfused() -> torch.Tensor:
        q, k, v = qkv.split(width, dim=1)
        k_pages[slots // rows, :, slots % rows] = turned(k)
        v_pages[slots // rows, :, slots % rows] = v.view(tokens, heads, dim)
        return turned(q)

    def ours() -> torch.Tensor:
        return ops.norm_rope_write_(
            qkv, k_pages, v_pages, slots, positions, heads=heads, norm="rms_full", q_weight=weight,
            k_weight=weight, frequencies=frequencies,
        )  # fmt: skip

    yield Case(
        "norm_rope_write_",
        f"{tokens} x {heads} x {dim}",
        ours,
        variant=backend_of("norm_rope_write_", qkv),
        written=(k_pages, v_pages),
        opponents={"PyTorch": unfused},
        bars={"PyTorch": TIMES},
        moved=2 * qkv.nbytes,
        share_bar=SHARE,
    )


def _pages(shape: Shape, normal: Callable[..., torch.Tensor]) -> Iterator[Case]:
    count = -(-shape.tokens // shape.page_rows)
    pool = normal(2, shape.layers, 2 * count, shape.heads, shape.page_rows, shape.dim)
    k_pages, v_pages = pool
    source = torch.arange(count, device=pool.device)
    target = source + count
    deltas, frequencies = source % 7, _frequencies(shape.dim, pool.device)
    half, name = pool.nbytes // 4, f"{count} pages, {shape.layers} layers"

    def unfused() -> None:
        k_pages[:, target] = k_pages[:, source]
        v_pages[:, target] = v_pages[:, source]

    def copy() -> tuple[torch.Tensor, ...]:
        ops.copy_pages_(k_pages, v_pages, source, target)
        return ()

    def rotate() -> tuple[torch.Tensor, ...]:
        ops.rotate_pages_(k_pages, source, deltas, frequencies)
        return ()

    yield Case(
        "copy_pages_",
        name,
        copy,
        variant=backend_of("copy_pages_", pool),
        written=(k_pages, v_pages),
        opponents={"PyTorch": unfused},
        moved=4 * half,
        share_bar=SHARE,
    )
    yield Case(
        "rotate_pages_",
        name,
        rotate,
        variant=backend_of("rotate_pages_", pool),
        written=(k_pages,),
        moved=2 * half,
        share_bar=SHARE,
    )


def _latents(shape: Shape, normal: Callable[..., torch.Tensor]) -> Iterator[Case]:
    """Of a chunk alone these are microseconds, less than a launch: no shares are asked for."""
    x, out = (normal(shape.frames, shape.latents, dtype=torch.float32) for _ in "xo")
    device, frames = x.device, shape.frames
    level, coefficients = torch.rand(frames, device=device), torch.rand(frames, 9, device=device)
    coefficients[:, 4:8], coefficients[:, 8] = 0, torch.inf
    keys = torch.arange(5 * frames, device=device).reshape(frames, 5)
    one, name = torch.ones(1, frames, device=device), f"{frames} x {shape.latents}"

    def noising() -> tuple[torch.Tensor, torch.Tensor]:
        noise, a = torch.randn_like(x), level[:, None]
        return a * x + a * noise, a * noise - a * x

    def summed() -> tuple[torch.Tensor, torch.Tensor]:
        p, q, a, b = (c[:, None] for c in coefficients[:, :4].unbind(1))
        x0 = p * x + q * out
        return a * x + b * x0, x0

    yield Case(
        "add_noise",
        name,
        lambda: ops.add_noise(x, level, level, keys=keys, target="v"),
        variant=backend_of("add_noise", x),
        limit=FLOAT_LIMIT,
        opponents={"PyTorch": noising},
        bars={"PyTorch": TIMES},
        moved=3 * x.nbytes,
    )
    yield Case(
        "solver_step",
        name,
        lambda: ops.solver_step(x, out[None], one, coefficients),
        variant=backend_of("solver_step", x),
        limit=FLOAT_LIMIT,
        opponents={"PyTorch": summed},
        bars={"PyTorch": TIMES},
        moved=4 * x.nbytes,
    )
    yield Case(
        "philox_normal",
        name,
        lambda: ops.philox_normal(keys, shape.latents),
        variant=backend_of("philox_normal", x),
        limit=FLOAT_LIMIT,
        opponents={"torch.randn": lambda: torch.randn_like(x)},
        moved=x.nbytes,
    )


def _frequencies(dim: int, device: torch.device) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)


if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], lambda _: cases(Shape(), "cuda", torch.bfloat16)))
