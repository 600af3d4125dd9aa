# SPDX-License-Identifier: Apache-2.0
"""From a TOML file and overrides to a config dataclass, with every mistake explained."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ardiff_engine.errors import ArdiffError, ConfigError, explain

T = TypeVar("T")


def read_config(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A config of class `kind` from a TOML file, with `section.name=value` overrides applied last.

    Raises ConfigError for a missing file, broken TOML, an unknown name (naming the nearest), or a value of a
    wrong type.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            explain("config file", got=str(path), expected="a readable TOML file", fix=str(error))
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            explain(f"config file {path}", got="broken TOML", expected="valid TOML", fix=f"{error}.")
        ) from error
    for override in overrides:
        _apply_override(values, override)
    return build(kind, values, "")


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass from nested dicts, with the checks that `read_config` describes."""
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{where}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                explain(
                    "unknown setting",
                    got=full,
                    expected=", ".join(where + item for item in known),
                    fix=f"Did you mean {where + near!r}?",
                )
            )
        arguments[name] = _convert(hints[name], value, full)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ConfigError(
            explain(
                where.rstrip(".") or "config",
                got="an incomplete table",
                expected="all required names",
                fix=f"{error}.",
            )
        ) from error
    except ArdiffError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error)) from error


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(explain(name, got=repr(value), expected="a table", fix=f"Write [{name}]."))
        return build(hint, value, f"{name}.")
    if origin in (types.UnionType, typing.Union):
        options = tuple(option for option in options if option is not type(None))
        return _convert(options[0], value, name)
    if origin is Literal:
        fits, expected = value in options, " | ".join(map(repr, options))
    elif origin is tuple:
        fits, expected = isinstance(value, list), "a list"
        value = tuple(value) if fits else value
    elif hint is float:
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        value = float(value) if fits else value
    elif hint is int:
        fits, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        fits, expected = isinstance(value, hint), hint.__name__
    if not fits:
        raise ConfigError(explain(name, got=repr(value), expected=expected, fix="Correct its value."))
    return value


def _apply_override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *sections, name = path.strip().split(".")
    if not equals or not name:
        raise ConfigError(
            explain(
                "override", got=repr(override), expected="section.name=value", fix="E.g. optimizer.lr=1e-4."
            )
        )
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(
                explain(
                    "override",
                    got=repr(override),
                    expected="a path of tables",
                    fix=f"{section!r} is a value.",
                )
            )
    try:
        table[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[name] = text.strip()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain values, ready for JSON (and for `build`, None entries aside)."""
    return dataclasses.asdict(config)
