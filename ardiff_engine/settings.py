# SPDX-License-Identifier: Apache-2.0
"""Config dataclasses from plain values, as TOML and JSON give them, with every mistake explained."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ardiff_engine.errors import ArdiffError, ConfigError, explain
from ardiff_engine.parsing import cut, shown

T = TypeVar("T")
# Far above any model, and so low that no product of two sizes overflows and every model can be described.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1024
MAX_ITEMS = 64
MAX_NAME = 60
# Of a number in a config: far above any use, and so low that float32 holds it and sums of it.
LARGEST = 10**18


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from nested tables; `where` is put before the names in errors.

    Raises ConfigError for an unknown name (with the nearest one), a missing one, a value of a wrong type, or
    values that do not fit together.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [item.name for item in fields]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{where}{name}"
        if name not in known:
            near = difflib.get_close_matches(name[:MAX_NAME], known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                explain(
                    "unknown setting",
                    got=cut(full, MAX_NAME),
                    expected=", ".join(where + item for item in known),
                    fix=f"Did you mean {where + near!r}?",
                )
            )
        arguments[name] = _convert(hints[name], value, full)
    missing = [item.name for item in fields if item.name not in arguments and _is_required(item)]
    if missing:
        raise ConfigError(f"{where.rstrip('.') or 'config'} lacks {', '.join(missing)}. Add what is missing.")
    try:
        return kind(**arguments)
    except ConfigError:
        raise
    except ArdiffError as error:
        raise ConfigError(str(error)) from error


def at_least(section: str, config: Any, least: int, *names: str) -> None:
    """ConfigError for the first of these fields that is below `least`, or no number of any use."""
    for name in names:
        value = getattr(config, name)
        if not least <= value <= LARGEST:
            raise ConfigError(f"{section}.{name}: got {value}, expected {least} to {LARGEST:g}.")


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(explain(name, got=shown(value), expected="a table", fix=f"Write [{name}]."))
        return build(hint, value, f"{name}.")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, name)
    if origin is Literal:
        fits, expected = isinstance(value, str) and value in options, " | ".join(map(repr, options))
    elif origin is tuple:
        fits, expected = (
            isinstance(value, list | tuple) and len(value) <= MAX_ITEMS,
            f"a list of at most {MAX_ITEMS}",
        )
        value = tuple(_convert(options[0], item, f"{name}[]") for item in value) if fits else value
    elif hint is float:
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        value = float(value) if fits else value
    elif hint is int:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        fits, expected = isinstance(value, hint), hint.__name__
    if not fits:
        raise ConfigError(explain(name, got=shown(value), expected=expected, fix="Correct its value."))
    return value
