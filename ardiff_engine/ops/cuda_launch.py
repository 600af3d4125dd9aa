# SPDX-License-Identifier: Apache-2.0
"""Launching the CUDA kernels, and asking a device what its kernels found wrong.

A kernel cannot raise. It skips an id that is out of range, sets a bit in one int32 of its device, and the bit
stays until `check_device` looks: at the end of a batch or a test, not in a hot loop, because it waits for
the device. An engine must not answer for the kernels of others: it has int32s of its own (`own_words`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from ardiff_engine.device import DEVICE_WIDE_CALLS
from ardiff_engine.errors import (
    ArdiffError,
    BackendNotAvailableError,
    KernelError,
    PageTableError,
    TensorError,
    explain,
)
from ardiff_engine.ops.cuda_route import cuda, why_no_cuda

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# csrc/include/ardiff/device_error.h
ErrorWords = dict[torch.device, torch.Tensor]
"""By device, for the life of their owner: graphs hold their addresses."""
_ERROR_WORDS: ErrorWords = {}
_OWN: ContextVar[ErrorWords | None] = ContextVar("own_error_words", default=None)
_FINDINGS = {
    1: "modulate or gate_residual: a frame id without a row (its output row is NaN)",
    2: "norm_rope_write_: a slot outside the page pool (it was not written)",
    4: "copy_pages_, rotate_pages_ or pool_pages_: a page outside the pool (it was left alone)",
    8: "frame_attention: a page or row outside the pool (it was not seen)",
}


def launch(kernel: str, device: torch.device, *arguments: int | float | tuple[int, ...]) -> None:
    """Launches `kernel` on the current stream of `device`.

    Raises:
        BackendNotAvailableError: CUDA cannot run here: no driver, one older than the toolkit, no GPU.
        KernelError: CUDA refused the launch.
    """
    module = _module()
    status = getattr(module, kernel)(*arguments, *_place(device))
    if status:
        raise cuda_error(kernel, status)


def launch_for(op: str, like: torch.Tensor, *arguments: int | float | tuple[int, ...]) -> None:
    """`launch` of the instance of `op` for the dtype of `like`, on its device."""
    if like.dtype not in DTYPES:
        raise TensorError(
            explain(
                f"dtype of the tensors of {op}",
                got=str(like.dtype).removeprefix("torch."),
                expected=" or ".join(DTYPES.values()),
                fix="Convert them, or set ARDIFF_BACKEND=reference.",
            )
        )
    launch(f"{op}_{DTYPES[like.dtype]}", like.device, *arguments)


def has_kernel(kernel: str) -> bool:
    """Whether this build has a launcher of this name."""
    return hasattr(_module(), kernel)


@contextmanager
def own_words(words: ErrorWords) -> Iterator[None]:
    """Within the block, kernels that this thread starts, and its `check_device`, use these words."""
    before = _OWN.set(words)
    try:
        yield
    finally:
        _OWN.reset(before)


def _words() -> ErrorWords:
    own = _OWN.get()
    return _ERROR_WORDS if own is None else own


def error_bits(device: torch.device) -> torch.Tensor:
    """The int32 of a device that its kernels set bits in.

    Raises:
        KernelError: the first call for this device is within a CUDA graph capture.
    """
    bits = _words().get(device)
    return _new_error_word(device) if bits is None else bits


def _new_error_word(device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # The zeros would be recorded: until the first replay the word would hold whatever is there, and every
        # replay would clear what nobody has read.
        raise KernelError(
            explain(
                "a kernel inside of a CUDA graph capture",
                got=f"the first one of this process on {device}",
                expected="one that has run before",
                fix="Call it once before the capture.",
            )
        )
    # Under inference_mode too: a tensor made there could not be cleared outside of it.
    with torch.inference_mode(False):
        bits = torch.zeros(1, dtype=torch.int32, device=device)
    if device.type == "cuda":
        with DEVICE_WIDE_CALLS:
            torch.cuda.synchronize(device)  # kernels on other streams set bits in it
    return _words().setdefault(device, bits)


def check_device(device: str | torch.device) -> None:
    """Waits for all streams of the device, and raises what its kernels have found since the last check.

    Raises:
        PageTableError: ids out of range; names the ops.
        KernelError: CUDA reports a failed kernel.
    """
    try:
        device = _with_index(torch.device(device))
        bits = error_bits(device)
    except ArdiffError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise KernelError(f"device {device!r:.80} cannot be used here: {error}") from error
    try:
        if device.type == "cuda":
            with DEVICE_WIDE_CALLS:
                torch.cuda.synchronize(device)
        found = int(bits.item())
    except RuntimeError as error:
        raise KernelError(f"a kernel failed on {device}: {error}") from error
    if found:
        # Not to 0: what another thread's kernels have found since stays for the next check.
        bits.bitwise_and_(~found)
        names = "; ".join(text for bit, text in _FINDINGS.items() if found & bit)
        raise PageTableError(
            explain(
                f"ids given to kernels on {device}",
                got=names,
                expected="ids that exist",
                fix="The checks that name the id run on the CPU: repeat the call with CPU tensors.",
            )
        )


def cuda_error(what: str, status: int) -> ArdiffError:
    """The typed error of a CUDA status."""
    name, message, unavailable = _module().describe(status)
    if not unavailable:
        return KernelError(f"{what}: CUDA refused the launch: {name}: {message}")
    driver, runtime = _module().versions()
    got = "no NVIDIA driver" if driver == 0 else f"a driver for CUDA {_version(driver)}"
    return BackendNotAvailableError(
        explain(
            f"{what} on the cuda backend",
            got=f"{got} ({name}: {message})",
            expected=f"an NVIDIA GPU and a driver for CUDA {_version(runtime)} or newer",
            fix="Update the driver, or set ARDIFF_BACKEND=triton or reference.",
        )
    )


def address(tensor: torch.Tensor | None) -> int:
    """What a kernel gets for a tensor; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _module() -> Any:
    module = cuda()
    if module is None:
        raise BackendNotAvailableError(why_no_cuda())
    return module


def _place(device: torch.device) -> tuple[int, int]:
    """The number of the device and the handle of its current stream."""
    device = _with_index(device)
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _with_index(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
