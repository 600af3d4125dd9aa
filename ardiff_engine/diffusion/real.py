# SPDX-License-Identifier: Apache-2.0
"""Whether a setting is a number at all, before it is compared with its limits."""

from __future__ import annotations

from numbers import Real


def is_real(value: object) -> bool:
    """True for real numbers of Python and NumPy; False for strings, None, lists and tensors."""
    return isinstance(value, Real)
