# SPDX-License-Identifier: Apache-2.0
"""Hostile JSON and TOML: good values with a few places changed, and texts that no parser should be given."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

from tools.fuzz.mutate import mutated

DEEP = "@deep@"
DIGITS = "@digits@"
EVIL: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63 - 1, 2**63, 2**70, 10**4000),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "wide", "0", "\0", "\ud800", "x" * 100_000, "../../etc/passwd", "{}", "é" * 300),
    *([], [[]], {}, {"x": {}}, [1] * 100, [1] * 3000, ["a", 1, None], {"": 0}, DEEP, DIGITS),
)


def changed(values: Any, rng: random.Random) -> Any:
    """A copy with one to four places replaced, removed, renamed or added."""
    result = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(result))
        if not places:
            return copy.deepcopy(rng.choice(EVIL))
        holder, key = rng.choice(places)
        how = rng.randrange(8)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[f"{key}s" if rng.random() < 0.5 else rng.choice(("", "x" * 5000, "\0", "a.b"))] = (
                holder.pop(key)
            )
        elif how == 2 and isinstance(holder, dict):
            holder[f"more{rng.randrange(100)}"] = copy.deepcopy(rng.choice(EVIL))
        elif how == 3 and isinstance(holder[key], int | float):
            factor, more = rng.choice((-1, 2, 10**6, 10**12, 0.5)), rng.choice((0, 1))
            with contextlib.suppress(OverflowError):  # half of a whole number that no float can hold
                holder[key] = holder[key] * factor + more
        else:
            holder[key] = copy.deepcopy(rng.choice(EVIL))
    return result


def json_text(values: Any, rng: random.Random) -> bytes:
    """Of good values: changed values as JSON, changed bytes of JSON, or text that is large or deep."""
    how = rng.randrange(10)
    if how == 0:
        deep = rng.choice(("[", '{"a":', '[{"a":'))
        return (deep * rng.choice((100, 1000, 100_000, 2_000_000))).encode()
    if how == 1:
        return rng.choice(
            (b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b" " * 3_000_000, b"[" + b"0," * 500_000 + b"0]")
        )
    if how in (2, 3):
        return mutated(json.dumps(values).encode(), rng)
    text = json.dumps(changed(values, rng))
    depth = rng.choice((40, 900, 100_000))
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(f'"{DIGITS}"', "9" * 5000)
    if how == 4:
        text = text.replace("{", '{"format": 1, "format": {}, ', 1)  # a name twice
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32")), "surrogatepass")


def toml_text(values: dict[str, Any], rng: random.Random) -> bytes:
    """The same for TOML."""
    how = rng.randrange(10)
    if how == 0:
        size = rng.choice((100, 2000, 30_000, 2_000_000))
        return rng.choice(
            (
                "x = " + "[" * size,
                "x = " + "{a = " * size,
                ".".join("a" * size) + " = 1",
                "\n".join(".".join("a" * 1000) + f".b{n} = 1" for n in range(min(30, size))),
                "[" + ".".join("a" * size) + "]",
                "\n".join(f"[[t.a{n}]]" for n in range(min(size, 5000))),
                "x = 0x" + "f" * size,
                "x = " + "9" * size,
                'x = "' + "\\u0041" * size + '"',
                "#" * size,
            )
        ).encode()
    if how in (1, 2):
        return mutated(_toml(values).encode(), rng)
    text = _toml(changed(values, rng))
    if how == 3:
        text += rng.choice(
            ("\nx = 1979-05-27", "\nx = 07:32:00", "\n[run]", "\nrun = 1", "\n\\", "\nx = nan")
        )
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "latin-1", "utf-16")), "replace")


def _places(values: Any) -> list[tuple[Any, Any]]:
    own: list[tuple[Any, Any]] = []
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in items:
        own.append((values, key))
        own += _places(value)
    return own


def _toml(values: Any) -> str:
    if not isinstance(values, dict):
        return f"x = {_value(values)}"
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        lines.append(f"[{_key(name)}]")
        lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in inner]
        for key, value in inner.items():
            lines.append(f"{_key(key)} = {_value(value)}")
    return "\n".join(lines)


def _key(key: object) -> str:
    return json.dumps(str(key))


def _value(value: Any) -> str:
    if value == DEEP:
        return "[" * 2000 + "]" * 2000
    if value == DIGITS:
        return "9" * 5000
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**100 else hex(value)
    return json.dumps(value)
