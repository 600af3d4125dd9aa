# SPDX-License-Identifier: Apache-2.0
"""Hypothesis's examples: the same in every run, or, with `--hypothesis-profile=explore`, new ones.

Two runs of the same tree end alike: no test fails on an example that the run before did not try.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers


def fix_examples() -> None:
    # A busy machine is no fault of a test.
    untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("explore", untimed)
    settings.register_profile("fixed", untimed, derandomize=True, database=None)
    settings.load_profile("fixed")
    # Hypothesis also draws constants out of the source of the modules that happen to be imported: the
    # examples of a test would depend on the tests before it. There is no public switch; test_effort.py
    # watches this one.
    none = providers.Constants()
    providers._get_local_constants = lambda: none
