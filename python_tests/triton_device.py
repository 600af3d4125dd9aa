# SPDX-License-Identifier: Apache-2.0
"""Where the tests of the Triton kernels run: each once in Triton's interpreter on the CPU, and once on a GPU.

Triton decides when a kernel is defined whether to interpret it, so the two cannot share a process:

    TRITON_INTERPRET=1 python -m pytest python_tests/test_triton_*.py    interpreter
    python -m pytest -m gpu python_tests/test_triton_*.py                a GPU
"""

from __future__ import annotations

from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
INTERPRETED = bool(triton.knobs.runtime.interpret)
DEVICES = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            not INTERPRETED, reason="needs Triton's interpreter: set TRITON_INTERPRET=1 before pytest starts"
        ),
    ),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 is set: unset it to use the GPU"),
        ],
    ),
]


def _allow_loops_with_numpy_2_4() -> None:
    """Triton 3.5 and 3.6 end a loop at int(array of one element), which NumPy 2.4 refuses
    (triton-lang/triton issue 9171)."""
    from triton.runtime import interpreter

    before = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch


if INTERPRETED:
    _allow_loops_with_numpy_2_4()
