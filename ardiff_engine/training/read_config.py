# SPDX-License-Identifier: Apache-2.0
"""From a TOML file and overrides to a config dataclass, with every mistake explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.parsing import MAX_TOML_LINE, parse_toml, read_toml
from ardiff_engine.settings import build

T = TypeVar("T")


def read_config(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A config of class `kind` from a TOML file, with `section.name=value` overrides applied last.

    Raises ConfigError for a missing file, broken TOML, an unknown name (naming the nearest), or a value of a
    wrong type.
    """
    values = read_values(path, overrides)
    try:
        return build(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file, and the overrides in them."""
    values = read_toml(Path(path), ConfigError)
    for override in overrides:
        _apply_override(values, override)
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    if len(override) > MAX_TOML_LINE:
        raise ConfigError(f"an override has {len(override)} characters, expected at most {MAX_TOML_LINE}.")
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
        table[name] = parse_toml(f"value = {text}", "override", ConfigError)["value"]
    except ConfigError:
        table[name] = text.strip()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain values, ready for JSON (and for `build`, None entries aside)."""
    return dataclasses.asdict(config)


def with_defaults(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of an older config of this class, and for each field that it did not have the default."""
    filled = dict(values)
    for field in dataclasses.fields(config):
        own = getattr(config, field.name)
        if field.name not in values and field.default is not dataclasses.MISSING:
            filled[field.name] = field.default
        elif field.name not in values and field.default_factory is not dataclasses.MISSING:
            made = field.default_factory()
            filled[field.name] = to_dict(made) if dataclasses.is_dataclass(made) else made
        elif dataclasses.is_dataclass(own) and isinstance(values.get(field.name), Mapping):
            filled[field.name] = with_defaults(own, values[field.name])
    return filled
