# SPDX-License-Identifier: Apache-2.0
"""`frame_attention` on the CUDA kernel (csrc/cuda/frame_attention.cu): what it takes, and its launch.

float32 runs on a simple kernel, bfloat16 and float16 on tensor cores. These read 16 bytes at a time: head
dimension and strides must be multiples of 8, and tensors start at multiples of 16 bytes. Anything else is
refused: a copy of a page pool per call would be slower than any other backend.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops import checks
from ardiff_engine.ops.attention_work import attention_work
from ardiff_engine.ops.cuda_launch import DTYPES, address, error_bits, launch_for

Tensor = torch.Tensor

# csrc/cuda/frame_attention.cu
MOST_COLUMNS, MOST_FLOAT_COLUMNS = 128, 256
MOST_KV_HEADS = 65535
_PACK, _ALIGNMENT = 8, 16
_OTHERS = "or set ARDIFF_BACKEND=triton or reference."


def frame_attention_cuda(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor,
    pages: Tensor, valid: Tensor, seen: Tensor, bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, lse), lse in float32; see `ardiff_engine.ops.frame_attention`.

    Raises:
        TensorError: a head dimension, stride or address that the kernel does not take.
        PageTableError, KernelError: see attention_work.
    """
    check_supported(q, k_pages, v_pages)
    (tokens, heads, dim), (pool, kv_heads, rows, _) = q.shape, k_pages.shape
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if tokens == 0:
        return o, lse
    work = attention_work(frame_ptr, group_ptr, page_ptr, valid, seen, heads, kv_heads)
    workspace = work.workspace(kv_heads, dim)
    launch_for(
        "frame_attention",
        q,
        tuple(map(address, (q, k_pages, v_pages, o, lse))),
        (*map(address, (frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias)), group_ptr.numel() - 1),
        (tokens, pool, heads, kv_heads, dim, rows),
        (*_steps(q), *_steps(k_pages), *_steps(v_pages)),
        scale,
        work.buffer.data_ptr(),
        address(workspace),
        work.sizes,
        error_bits(q.device).data_ptr(),
    )
    return o, lse


def check_supported(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """TensorError, naming what the kernel takes, unless it takes these."""
    if q.dtype not in DTYPES:
        raise _unsupported("dtype of q", q.dtype, " or ".join(DTYPES.values()), "Convert the tensors,")
    dim, half = q.shape[2], q.dtype != torch.float32
    if dim > (MOST_COLUMNS if half else MOST_FLOAT_COLUMNS) or (half and dim % _PACK):
        expected = (
            f"a multiple of {_PACK}, at most {MOST_COLUMNS}" if half else f"at most {MOST_FLOAT_COLUMNS}"
        )
        name = DTYPES[q.dtype]
        raise _unsupported("head dimension", dim, f"{expected} for {name} on the cuda backend", "Pad it,")
    if k_pages.shape[1] > MOST_KV_HEADS:
        raise _unsupported("kv heads", k_pages.shape[1], f"at most {MOST_KV_HEADS}", "Split the call,")
    for name, tensor in (("q", q), ("k_pages", k_pages), ("v_pages", v_pages)):
        checks.inner_contiguous(name, tensor)
        if half and any(step % _PACK for step in _steps(tensor)):
            expected = f"multiples of {_PACK} elements, for 16-byte accesses on the cuda backend"
            raise _unsupported(f"strides of {name}", tensor.stride(), expected, "Copy it to a dense tensor,")
        if half and tensor.data_ptr() % _ALIGNMENT:
            got = f"{tensor.data_ptr() % _ALIGNMENT} bytes beyond a multiple of {_ALIGNMENT}"
            expected = f"a multiple of {_ALIGNMENT} bytes on the cuda backend"
            raise _unsupported(f"address of {name}", got, expected, "Copy it to a tensor of its own,")


def _steps(tensor: Tensor) -> tuple[int, ...]:
    """Strides but the last; 0 where there is one item, since a stride then means nothing."""
    return tuple(
        stride if size > 1 else 0
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    )


def _unsupported(what: str, got: object, expected: str, fix: str) -> TensorError:
    return TensorError(explain(what, got=got, expected=expected, fix=f"{fix} {_OTHERS}"))
