# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that are no tensors: each raises ConfigError, or returns the value in Python's type."""

from __future__ import annotations

from operator import index
from pathlib import Path
from typing import TypeVar

from ardiff_engine.errors import ConfigError

T = TypeVar("T")


def integer(name: str, value: object, low: int = -(2**63), high: int = 2**64 - 1) -> int:
    """An integer of Python, NumPy or torch in low..high; no bool and no float, whatever its value."""
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # torch: a tensor of several numbers
        raise ConfigError(f"{name} must be a whole number, got {value!r:.80}") from None
    if not low <= whole <= high:
        raise ConfigError(f"{name} must be in {low}..{high}, got {whole}")
    return whole


def number(name: str, value: object) -> float:
    """A real number that a float can hold; NaN and infinity are numbers too."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ConfigError(f"{name} must be a number, got {value!r:.80}") from None


def instance(name: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__}, got {type(value).__name__} {value!r:.80}")
    return value


def choice(name: str, value: object, names: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in names:
        raise ConfigError(f"{name} must be {' or '.join(names)}, got {value!r:.80}")
    return value


def path(name: str, value: object) -> Path:
    """A place on the disk; a number or None is none."""
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} must be a string or a pathlib.Path, got {value!r:.80}") from None
