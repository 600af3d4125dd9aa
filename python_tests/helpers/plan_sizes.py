# SPDX-License-Identifier: Apache-2.0
"""Sizes of lag plans for property tests: generated frames, steps, lag, given frames."""

from __future__ import annotations

from hypothesis import strategies as st

sizes = st.integers(1, 9).flatmap(
    lambda steps: st.tuples(st.integers(1, 12), st.just(steps), st.integers(0, steps), st.integers(0, 4))
)
