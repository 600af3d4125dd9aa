# SPDX-License-Identifier: Apache-2.0
"""Systems by name. A module beside this one that has a `SYSTEM` is one: the system as it was released, with
`VARIANTS` of it, if any. The module of the same name in `specs` reads its sizes from an entry: `from_spec`;
`training`, if any, says what is drawn when it is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from ardiff_engine.errors import ConfigError
from ardiff_engine.systems.official.training_draws import Training
from ardiff_engine.systems.system import System


@cache
def _systems() -> dict[str, tuple[System, str]]:
    found: dict[str, tuple[System, str]] = {}
    for _, name, _ in iter_modules(sys.modules[__package__].__path__):
        if name == "__main__":
            continue
        module = import_module(f"{__package__}.{name}")
        if hasattr(module, "SYSTEM"):
            found |= {own.name: (own, name) for own in (module.SYSTEM, *getattr(module, "VARIANTS", ()))}
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
    module = f"{__package__}.specs.{_entry(name)[1]}"
    reader = import_module(module) if find_spec(module) else None
    kind = "training" if "training" in str(entry.get("mode")) else "from_spec"
    if not hasattr(reader, kind):
        raise ConfigError(f"{name} is not read from an entry: expected a {kind}(entry) in {module}")
    try:
        system: System | Training = getattr(reader, kind)(entry)
    except KeyError as missing:
        raise ConfigError(f"an entry of {name} needs {missing}, and has {', '.join(entry)}") from None
    return system


def _entry(name: str) -> tuple[System, str]:
    """The system, and the name of its module."""
    known = _systems()
    if name not in known:
        near = get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown system {name!r}: {near} is nearest, of {', '.join(sorted(known))}")
    return known[name]
