# SPDX-License-Identifier: Apache-2.0
"""frame_attention in training, forward and backward, beside FlexAttention and SDPA with a boolean mask.

    python benchmarks/gpu/training.py

64 clips of 16 frames of 32 tokens, frame f sees frames 0..f, 16 heads of 72, bfloat16. Bar: FlexAttention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from case import Case, Result, backend_of, main
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable


@dataclass(frozen=True, slots=True)
class Shape:
    clips: int = 64
    frames: int = 16
    tokens: int = 32
    heads: int = 16
    dim: int = 72


def case(shape: Shape, device: str, dtype: torch.dtype) -> Case:
    clips, frames, tokens, heads, dim = shape.clips, shape.frames, shape.tokens, shape.heads, shape.dim
    listed = [list(range(clip * frames, (clip + 1) * frames)) for clip in range(clips)]
    sizes, seen = [[tokens] * frames] * clips, [list(range(1, frames + 1))] * clips
    table = FrameTable.build(sizes, listed, sizes, seen).to(device)
    q, o_grad = (torch.randn(clips * frames * tokens, heads, dim, device=device).to(dtype) for _ in "qo")
    k, v = (torch.randn(clips * frames, heads, tokens, dim, device=device).to(dtype) for _ in "kv")
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]

    def clipwise(tensor: torch.Tensor) -> torch.Tensor:
        """Of tokens [T, H, D]: [clips, H, frames * tokens, D]."""
        own = tensor.detach().view(clips, frames * tokens, heads, dim)
        return own.transpose(1, 2).contiguous()

    paged_rows = [pages.detach().transpose(1, 2).reshape(-1, heads, dim) for pages in (k, v)]
    dense = [clipwise(rows).requires_grad_() for rows in (q, *paged_rows)]
    frame = torch.arange(frames * tokens, device=device) // tokens
    mask = frame[:, None] >= frame[None, :]
    dense_grad = clipwise(o_grad)

    def both(forward: Callable[[], torch.Tensor], of: list[torch.Tensor], grad: torch.Tensor) -> Result:
        o = forward()
        return (o, *torch.autograd.grad(o, of, grad))

    def masked() -> torch.Tensor:
        return scaled_dot_product_attention(*dense, attn_mask=mask)

    def expected() -> Result:
        o, dq, dk, dv = both(masked, dense, dense_grad)
        flat = [x.transpose(1, 2).reshape(-1, heads, dim) for x in (o, dq, dk, dv)]
        paged = [x.view(clips * frames, tokens, heads, dim).transpose(1, 2) for x in flat[2:]]
        return (*flat[:2], *paged)

    def flex() -> Callable[[], object]:
        size = frames * tokens
        blocks = create_block_mask(
            lambda b, h, i, j: i // tokens >= j // tokens, None, None, size, size, device=device
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda: both(lambda: compiled(*dense, block_mask=blocks), dense, dense_grad)

    pairs = frames * (frames + 1) // 2 * tokens**2
    return Case(
        "frame_attention forward + backward",
        f"{clips} x {frames} frames x {tokens}, {heads} x {dim}",
        lambda: both(lambda: frame_attention(q, k, v, table), inputs, o_grad),
        variant=f"{backend_of('frame_attention', q)}, {backend_of('frame_attention_backward', q)}",
        expected=expected,
        opponents={"FlexAttention": flex(), "SDPA, boolean mask": lambda: both(masked, dense, dense_grad)},
        bars={"FlexAttention": 1.0},
        flops=14 * clips * heads * pairs * dim,  # two products forward, five backward
    )


def cases(_: str) -> Iterator[Case]:
    yield case(Shape(), "cuda", torch.bfloat16)


if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], cases))
