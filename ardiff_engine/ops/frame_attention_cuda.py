# SPDX-License-Identifier: Apache-2.0
"""`frame_attention` on the CUDA kernels: what they take, which of them runs, and its launch.

    sm_80   csrc/cuda/frame_attention.cu       every GPU since Ampere; float32, bfloat16, float16
    sm_90a  csrc/cuda/sm90/frame_attention.cu  Hopper; bfloat16, float16; see `why_not_sm90`

float32 runs on a simple kernel, bfloat16 and float16 on tensor cores. These read 16 bytes at a time: head
dimension and strides must be multiples of 8, and tensors start at multiples of 16 bytes. Anything else is
refused: a copy of a page pool per call would be slower than any other backend.
"""

from __future__ import annotations

import os
from functools import cache

import torch

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.ops import checks
from ardiff_engine.ops.attention_work import (
    RecordedWork,
    attention_work,
    roomy_words,
    stream_k_words,
    stream_k_work,
)
from ardiff_engine.ops.backend import Choice
from ardiff_engine.ops.cuda_launch import DTYPES, address, error_bits, has_kernel, launch_for

Tensor = torch.Tensor

# csrc/cuda/frame_attention.cu
MOST_COLUMNS, MOST_FLOAT_COLUMNS = 128, 256
MOST_KV_HEADS = 65535
_PACK, _ALIGNMENT = 8, 16
# csrc/cuda/sm90/frame_attention.cu
HALF = (torch.bfloat16, torch.float16)
HOPPER = 9
LEAST_SM90_COLUMNS = 64
MOST_TENSOR_MAP_STRIDE = 2**40  # bytes
_BOX_ROWS = (128, 112, 64, 32, 16)
_OTHERS = "or set ARDIFF_BACKEND=triton or reference."


def frame_attention_cuda(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor,
    pages: Tensor, valid: Tensor, seen: Tensor, bias: Tensor | None, scale: float, kernel: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, lse), lse in float32; see `ardiff_engine.ops.frame_attention`.

    kernel: "sm_80" or "sm_90a", for benchmarks and tests; None: `which_kernel` decides.

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
    offsets = (frame_ptr, group_ptr, page_ptr, valid, seen, heads, kv_heads)
    arguments = (
        tuple(map(address, (q, k_pages, v_pages, o, lse))),
        (*map(address, (frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias)), group_ptr.numel() - 1),
        (tokens, pool, heads, kv_heads, dim, rows),
        (*_steps(q), *_steps(k_pages), *_steps(v_pages)),
        scale,
    )
    error = error_bits(q.device).data_ptr()
    if (kernel or which_kernel(q, k_pages, v_pages).name) == "sm_90a":
        boxes = stream_k_work(*offsets, block_rows(rows))
        partial = boxes.workspace(dim)
        launch_for(
            "frame_attention_sm90", q, *arguments,
            boxes.buffer.data_ptr(), address(partial), boxes.sizes, boxes.block_rows, error,
        )  # fmt: skip
        return o, lse
    work = attention_work(*offsets)
    workspace = work.workspace(kv_heads, dim)
    launch_for(
        "frame_attention", q, *arguments, work.buffer.data_ptr(), address(workspace), work.sizes, error
    )
    return o, lse


def recorded_work(offsets: tuple[Tensor, ...], q: Tensor, k_pages: Tensor, v_pages: Tensor) -> RecordedWork:
    """The schedule of a table in host memory for a recorded call with tensors like these; see
    `attention_work.roomy_words`."""
    heads, kv_heads = q.shape[1], k_pages.shape[1]
    if which_kernel(q, k_pages, v_pages).name == "sm_90a":
        rows = block_rows(k_pages.shape[2])
        return stream_k_words(offsets, heads, kv_heads, rows, q.device)
    return roomy_words(offsets, heads, kv_heads, q.device)


def which_kernel(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> Choice:
    """The kernel that a call runs on, "sm_80" or "sm_90a", and why.

    The Hopper kernel must be asked for with ARDIFF_HOPPER=1: it has not yet run on a GPU. A mistake in its
    barriers, which no emulator can exclude, would not give wrong numbers but cost the process its GPU: the
    kernel traps after ten seconds.
    """
    why_not = why_not_sm90(q, k_pages, v_pages)
    if why_not is None and os.environ.get("ARDIFF_HOPPER") != "1":
        why_not = "not yet run on a GPU; ARDIFF_HOPPER=1 asks for it"
    if why_not is None:
        return Choice("sm_90a", "a Hopper GPU and ARDIFF_HOPPER=1")
    return Choice("sm_80", f"not sm_90a: {why_not}")


def why_not_sm90(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> str | None:
    """Why the Hopper kernel cannot run a call that check_supported accepts; None where it can."""
    if q.dtype not in HALF:
        return f"dtype is {DTYPES[q.dtype]}; it takes {' or '.join(map(DTYPES.__getitem__, HALF))}"
    major, minor = _capability(q.device)
    if major != HOPPER:
        return f"the GPU has compute capability {major}.{minor}; it needs {HOPPER}.x"
    if q.shape[2] < LEAST_SM90_COLUMNS:
        return f"head dimension is {q.shape[2]}; it takes {LEAST_SM90_COLUMNS} to {MOST_COLUMNS}"
    if k_pages.shape[0] == 0:
        return "there are no pages, and a tensor map needs an address"
    if k_pages.shape[2] % _BOX_ROWS[-1]:
        return f"pages have {k_pages.shape[2]} rows; it takes multiples of {_BOX_ROWS[-1]}"
    steps = (*_steps(k_pages), *_steps(v_pages))
    if max(steps) * q.element_size() >= MOST_TENSOR_MAP_STRIDE:
        return "pages are too far apart for a tensor map; their strides must be below 2^40 bytes"
    if not has_kernel(f"frame_attention_sm90_{DTYPES[q.dtype]}"):
        return "this build has no kernels for sm_90a"
    return None


def block_rows(page_rows: int) -> int:
    """Rows of a box of the Hopper kernel: the largest that divides a page."""
    return next(rows for rows in _BOX_ROWS if page_rows % rows == 0)


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


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _steps(tensor: Tensor) -> tuple[int, ...]:
    """Strides but the last; 0 where there is one item, since a stride then means nothing."""
    return tuple(
        stride if size > 1 else 0
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    )


def _unsupported(what: str, got: object, expected: str, fix: str) -> TensorError:
    return TensorError(explain(what, got=got, expected=expected, fix=f"{fix} {_OTHERS}"))
