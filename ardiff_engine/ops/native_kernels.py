# SPDX-License-Identifier: Apache-2.0
"""The native module for code that already knows, from `backend.choose`, that it is there."""

from __future__ import annotations

from types import ModuleType

from ardiff_engine._native import native, why_not
from ardiff_engine.errors import BackendNotAvailableError


def kernels() -> ModuleType:
    """`ardiff_engine._C`. Raises BackendNotAvailableError where it was not built."""
    module = native()
    if module is None:
        raise BackendNotAvailableError(why_not())
    return module
