# SPDX-License-Identifier: Apache-2.0
"""Tensor maps for the bulk copies of Hopper kernels, encoded by the driver, without the CUDA toolkit.

CuPy has no name for cuTensorMapEncodeTiled, so it is called in libcuda itself. What it is called with comes
from the launcher (csrc/cuda/sm90/tensor_map.cuh, listed in `_C.launches`): numbers only, no GPU and no
context are touched.

Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from ardiff_engine.errors import BackendNotAvailableError, KernelError, explain

MAP_BYTES, MAP_ALIGNMENT = 128, 128  # csrc/cuda/tensor_map.h
# (type, rank, address, sizes, strides, box, steps in the box, interleave, swizzle, promotion, fill)
TiledTensor = tuple[
    int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int, int, int
]
_ENUM, _INT = ctypes.c_int, ctypes.c_uint32
_LONGS, _INTS = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint32)
ENCODER = ctypes.CFUNCTYPE(  # CUresult cuTensorMapEncodeTiled(CUtensorMap*, ...)
    _ENUM, ctypes.c_void_p, _ENUM, _INT, ctypes.c_void_p, _LONGS, _LONGS, _INTS, _INTS,
    _ENUM, _ENUM, _ENUM, _ENUM,
)  # fmt: skip


@lru_cache(maxsize=512)
def encode(tensor: TiledTensor) -> bytes:
    """The 128 bytes of the map. Kept, as they depend on nothing else: a page pool is asked for at every call.

    Raises:
        BackendNotAvailableError: a driver without tensor maps, older than CUDA 12.
        KernelError: the driver refuses the tensor.
    """
    kind, rank, address, sizes, strides, box, steps, *modes = tensor
    memory = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    aligned = -(-ctypes.addressof(memory) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    longs = [(ctypes.c_uint64 * len(numbers))(*numbers) for numbers in (sizes, strides)]
    ints = [(ctypes.c_uint32 * len(numbers))(*numbers) for numbers in (box, steps)]
    status = encoder()(aligned, kind, rank, address, *longs, *ints, *modes)
    if status:
        raise KernelError(
            f"the driver encodes no tensor map of {tensor}: cuTensorMapEncodeTiled gives {status}"
        )
    return ctypes.string_at(aligned, MAP_BYTES)


@cache
def encoder() -> Callable[..., int]:
    """cuTensorMapEncodeTiled of the driver that is installed."""
    try:
        function: Any = ENCODER(("cuTensorMapEncodeTiled", ctypes.CDLL("libcuda.so.1")))
    except (OSError, AttributeError) as error:
        raise BackendNotAvailableError(
            explain(
                "tensor maps, for the Hopper kernel of frame_attention",
                got=f"a driver without cuTensorMapEncodeTiled ({error})",
                expected="a driver for CUDA 12.0 or newer",
                fix="Update the driver, or unset ARDIFF_HOPPER.",
            )
        ) from error
    return function
