# SPDX-License-Identifier: Apache-2.0
"""The native module, if this installation has one: `native()`, and `why_not()` where it has none.

Its CUDA part is `cuda()`; it loads without a driver, since cudart is linked statically.
"""

from __future__ import annotations

import ctypes
import importlib
import warnings
from functools import cache
from types import ModuleType

import torch  # noqa: F401  (loads the OpenMP runtime that the kernels use; must come before the native module)


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("ardiff_engine._C"), None
    except ModuleNotFoundError:
        return None, "the native module was not built (it needs a C++17 compiler and cmake at install time)"
    except ImportError as error:
        if "GOMP_" not in str(error) and "omp_" not in str(error):
            return None, f"the native module does not load: {error}"
    # This torch brings another OpenMP runtime, without GNU's names: fall back to the system's libgomp.
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module("ardiff_engine._C"), None
    except (ImportError, OSError) as error:
        return None, f"the native module does not load: {error}"


def native() -> ModuleType | None:
    """`ardiff_engine._C`, or None where it was not built or does not load. Loaded once."""
    return _load()[0]


def why_not() -> str | None:
    """Why `native()` is None; None where it is a module."""
    return _load()[1]


@cache
def warn_missing() -> None:
    """Says once per process that the PyTorch reference runs, where the C++ kernels are missing."""
    if native() is None:
        warnings.warn(
            f"the C++ kernels are missing, so the PyTorch reference runs, several times slower: {why_not()}",
            RuntimeWarning,
            stacklevel=2,
        )


def cuda() -> ModuleType | None:
    """The launchers of the CUDA kernels (`ardiff_engine._C.cuda`), or None where they were not built."""
    return getattr(native(), "cuda", None)


def why_no_cuda() -> str | None:
    """Why `cuda()` is None; None where it is a module."""
    if cuda() is not None:
        return None
    return why_not() or "the native module was built without CUDA (ARDIFF_CUDA=1 at install time; needs nvcc)"
