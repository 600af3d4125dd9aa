# SPDX-License-Identifier: Apache-2.0
"""A short campaign of `tools.fuzz.arguments`; `make test-all` and a person run longer ones."""

from __future__ import annotations

import pytest

from tools.fuzz import arguments


def test_the_recipes_work() -> None:
    for recipe in arguments.recipes().values():
        recipe.call(**recipe.arguments())


def test_no_argument_ends_untyped() -> None:
    ends = arguments.run(400, seed=30, show=True)
    assert not [end for end in ends if "WRONG" in end]
    assert {"works", "typed error", "signature"} <= set(ends)


@pytest.mark.slow
def test_a_long_campaign() -> None:
    assert not [end for end in arguments.run(2000, seed=31, show=True) if "WRONG" in end]
