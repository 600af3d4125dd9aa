# SPDX-License-Identifier: Apache-2.0
"""A user's own function, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ardiff_engine.errors import ConfigError


def named_function(name: str, setting: str) -> Callable[..., Any]:
    """The function that "module:function" names. setting: where the name was given, for the error.

    Raises ConfigError if there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f'{setting}: got {name!r:.200} ({error}), expected "module:function" that can be imported.'
        ) from error
    if not callable(found):
        raise ConfigError(f"{setting}: {name!r:.200} is {type(found).__name__}, expected a function.")
    function_: Callable[..., Any] = found
    return function_
