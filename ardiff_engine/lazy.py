# SPDX-License-Identifier: Apache-2.0
"""Names of a package that are imported when they are first used.

A package whose `__init__` imports all that it offers cannot be a part of what any of that imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package. homes: the module that each name is in; a module is in itself."""

    def of(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(homes[name])
        return home if homes[name] == f"{package}.{name}" else getattr(home, name)

    return of
