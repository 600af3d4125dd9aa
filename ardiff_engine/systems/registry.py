# SPDX-License-Identifier: Apache-2.0
"""Systems by name. A module beside this one that has a `SYSTEM` is one: the system as it was released, with
`VARIANTS` of it, if any, and `from_spec`, which makes it in other sizes; `training`, if any, says what is
drawn when it is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from ardiff_engine.errors import ConfigError
from ardiff_engine.systems.system import System
from ardiff_engine.systems.training_draws import Training


@cache
def _systems() -> dict[str, tuple[System, ModuleType]]:
    found: dict[str, tuple[System, ModuleType]] = {}
    for _, name, _ in iter_modules(sys.modules[__package__].__path__):
        if name == "__main__":
            continue
        module = import_module(f"{__package__}.{name}")
        if hasattr(module, "SYSTEM"):
            found |= {own.name: (own, module) for own in (module.SYSTEM, *getattr(module, "VARIANTS", ()))}
    return found


def names() -> list[str]:
    """Of all systems."""
    return sorted(_systems())


def get(name: str) -> System:
    """The system as it was released. ConfigError for an unknown name."""
    return _entry(name)[0]


def from_spec(entry: Mapping[str, Any]) -> System | Training:
    """A system in the sizes of `entry`: frames, block, window, timesteps, … as in the index of the golden
    numbers; of a mode of training, what is drawn in it. ConfigError for an unknown system, one without such a
    mode, or an entry that lacks something."""
    name = str(entry.get("system"))
    module = _entry(name)[1]
    kind = "training" if "training" in str(entry.get("mode")) else "from_spec"
    if not hasattr(module, kind):
        raise ConfigError(f"what {name} draws in training is not expressed: expected an entry without mode")
    try:
        system: System | Training = getattr(module, kind)(entry)
    except KeyError as missing:
        raise ConfigError(f"an entry of {name} needs {missing}, and has {', '.join(entry)}") from None
    return system


def _entry(name: str) -> tuple[System, ModuleType]:
    known = _systems()
    if name not in known:
        raise ConfigError(f"unknown system {name!r}: expected one of {', '.join(sorted(known))}")
    return known[name]
