# SPDX-License-Identifier: Apache-2.0
"""The boundary to files that others wrote: bounded before they are parsed, checked after, one typed error.

A parsing library may raise anything. What it raises inside `parsing` becomes one typed error that names the
file; code of this package stays outside of it, so that its own bugs keep their names.
"""

from __future__ import annotations

import contextlib
import json
import math
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ardiff_engine.errors import ArdiffError, CheckpointError

MAX_JSON_BYTES = 1 << 20
MAX_TOML_BYTES = 1 << 16
MAX_TOML_LINE = 1 << 12
MAX_NESTING = 32
MAX_REASON = 500
_INT64 = 1 << 63


@contextlib.contextmanager
def parsing(origin: object, error: type[ArdiffError] = CheckpointError, fix: str = "") -> Iterator[None]:
    """Turns whatever the block raises into `error`, with `origin` in front; errors of this package pass."""
    try:
        yield
    except ArdiffError:
        raise
    except Exception as failure:
        reason = getattr(failure, "strerror", None) or str(failure)
        text = f"{origin} cannot be read: {type(failure).__name__}: {cut(reason, MAX_REASON)}"
        raise error(f"{text}. {fix}".rstrip()) from failure


def check_regular(path: Path, error: type[ArdiffError] = CheckpointError) -> int:
    """The size in bytes of a file. Raises `error` where there is none, and for folders, pipes, devices."""
    with parsing(path, error, "Check the path."):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is no regular file. Name a file, not a folder, a pipe or a device.")
    return found.st_size


def read_bounded(path: Path, most: int, error: type[ArdiffError] = CheckpointError) -> bytes:
    """The content of a regular file of at most `most` bytes; nothing is read of a larger one."""
    size = check_regular(path, error)
    if size > most:
        raise error(f"{path} has {size} bytes, and this kind of file at most {most}. Check what it is.")
    with parsing(path, error, "Check its permissions."), open(path, "rb") as file:
        return file.read(most)


def read_json(path: Path, error: type[ArdiffError] = CheckpointError, *, most: int = MAX_JSON_BYTES) -> Any:
    """Plain values from a JSON file of at most `most` bytes; see `check_plain`."""
    return parse_json(read_bounded(path, most, error), path, error)


def parse_json(
    text: str | bytes,
    origin: object,
    error: type[ArdiffError] = CheckpointError,
    *,
    most: int = MAX_JSON_BYTES,
) -> Any:
    """Plain values from JSON text; `origin` says in errors where it came from."""
    if len(text) > most:
        raise error(f"{origin} has {len(text)} bytes of JSON, expected at most {most}. Check what it is.")
    with parsing(origin, error, "It must be JSON."):
        values = json.loads(text)
    return check_plain(values, origin, error)


def read_toml(path: Path, error: type[ArdiffError] = CheckpointError) -> dict[str, Any]:
    """Plain values from a TOML file."""
    content = read_bounded(path, MAX_TOML_BYTES, error)
    # A dotted key of n parts takes n² steps, and it must stand on one line.
    longest = max(map(len, content.splitlines()), default=0)
    if longest > MAX_TOML_LINE:
        raise error(f"{path} has a line of {longest} bytes, expected at most {MAX_TOML_LINE}. Break it.")
    return parse_toml(content, path, error)


def parse_toml(text: str | bytes, origin: object, error: type[ArdiffError]) -> dict[str, Any]:
    """Plain values from TOML text; `origin` says in errors where it came from."""
    with parsing(origin, error, "It must be TOML in UTF-8."):
        values = tomllib.loads(text.decode() if isinstance(text, bytes) else text)
    checked: dict[str, Any] = check_plain(values, origin, error)
    return checked


def check_plain(values: Any, origin: object, error: type[ArdiffError] = CheckpointError) -> Any:
    """The values as they are. Raises `error` for nesting deeper than 32, whole numbers beyond 64 bits,
    numbers that are not finite, and NUL characters: no file of this package has them, and what meets them
    fails late."""
    level = [values]
    for _ in range(MAX_NESTING + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise error(f"{origin} holds {value}, expected finite numbers.")
            elif isinstance(value, str) and "\0" in value:
                raise error(f"{origin} holds a text with a NUL character, which no name can have.")
            elif isinstance(value, int) and not -_INT64 <= value < _INT64:
                raise error(f"{origin} holds a whole number beyond 64 bits.")
        if not inner:
            return values
        level = inner
    raise error(f"{origin} is nested deeper than {MAX_NESTING} levels.")


def shown(value: object, most: int = 60) -> str:
    """A value for a message: nested ones by their kind, since they may be of any size, and long ones cut."""
    if isinstance(value, dict | list | tuple):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    return cut(repr(value), most)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
