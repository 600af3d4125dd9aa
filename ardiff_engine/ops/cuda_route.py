# SPDX-License-Identifier: Apache-2.0
"""Where the CUDA kernels come from: the native module, where nvcc was there when it was built; else NVRTC."""

from __future__ import annotations

from typing import Any

from ardiff_engine import _native
from ardiff_engine.kernels import nvrtc


def cuda() -> Any | None:
    """`ardiff_engine._C.cuda` or what stands in for it; None where there is neither."""
    return _native.cuda() or nvrtc.launchers()


def why_no_cuda() -> str | None:
    """Why `cuda()` is None; None where it is not."""
    if cuda() is not None:
        return None
    ahead_of_time, at_first_use = _native.why_no_cuda(), nvrtc.why_no_nvrtc()
    if ahead_of_time == at_first_use:  # there is no native module at all
        return ahead_of_time
    return f"{ahead_of_time}, and NVRTC cannot compile the kernels: {at_first_use}"


def why_cuda() -> str:
    """Which of the two `cuda()` is; why there is none."""
    if _native.cuda() is not None:
        return "the CUDA kernels are built"
    return why_no_cuda() or nvrtc.route()
