# SPDX-License-Identifier: Apache-2.0
"""The fixture `isa`: a test runs once per instruction set, and on the native kernels only.

ARDIFF_BACKEND=cpu makes an op raise where it would fall back to PyTorch: without it, a test of a kernel
against the reference could compare the reference with itself and pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from effort import ALL

from ardiff_engine._native import native, why_not

_MODULE = native()
ISAS = _MODULE.build_info()["isas"] if _MODULE is not None else ["not-built"]
if not ALL:
    ISAS = [ISAS[0], ISAS[-1]] if len(ISAS) > 1 else ISAS  # the baseline and the machine's own


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    assert _MODULE is not None, why_not()
    monkeypatch.setenv("ARDIFF_BACKEND", "cpu")
    before = _MODULE.isa()
    _MODULE.set_isa(request.param)
    yield request.param
    _MODULE.set_isa(before)
