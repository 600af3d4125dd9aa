# SPDX-License-Identifier: Apache-2.0
"""Plain values from files that others wrote: bounded, checked, and one typed error that names the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from ardiff_engine.errors import ArdiffError, CheckpointError, ConfigError, DataError
from ardiff_engine.parsing import (
    MAX_JSON_BYTES,
    MAX_NESTING,
    MAX_TOML_BYTES,
    check_plain,
    parsing,
    read_json,
    read_toml,
)


@pytest.mark.parametrize(
    "error",
    [
        *(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), AssertionError(), RecursionError("deep")),
        *(OverflowError("large"), MemoryError(), KeyError("x"), OSError(5, "Input/output error"), EOFError()),
        *(ValueError("x" * 10_000), StopIteration(), ZeroDivisionError(), SystemError("bad call")),
    ],
)
def test_whatever_a_library_raises_is_one_error_that_names_the_file(error: Exception) -> None:
    with pytest.raises(DataError, match="a.npy") as raised, parsing("a.npy", DataError, "Encode it again."):
        raise error
    assert raised.value.__cause__ is error and "Encode it again." in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("error", [CheckpointError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_of_the_package_and_interrupts_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, parsing("a.npy", DataError):
        raise error
    assert raised.value is error


NESTED = [
    *("[" * depth + "]" * depth for depth in (MAX_NESTING + 2, 500, 990, 1010, 100_000, 500_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (MAX_NESTING + 2, 990, 100_000)),
    *('[{"a":' * depth + "1" + "}]" * depth for depth in (MAX_NESTING, 100_000)),
    *("[" * 100_000, '{"a":' * 100_000),
]
NUMBERS = [
    *('"a\\u0000b"', '{"a": ["\\u0000"]}'),
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "9223372036854775808", "-9" + "0" * 30),
    *('{"a": [1, {"b": NaN}]}', "[1e400]", '{"a": 1' + "0" * 4000 + "}"),
]
BROKEN = ["", "{", '{"a"}', "nul", "'a'", '{"a": 1} x', '"\\ud800', "\x00", "[1,]", '"\n"']


@pytest.mark.parametrize("text", NESTED + NUMBERS + BROKEN, ids=lambda text: ascii(text[:16]))
def test_hostile_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="config.json"):
        read_json(path, ConfigError)


@pytest.mark.parametrize("data", [b"\xff\xfe\xfa", b"\xc3(", b'{"a": "\xff"}', b"\x00\x00\x00"])
def test_json_in_no_encoding(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="config.json"):
        read_json(tmp_path / "config.json")


def test_the_deepest_and_largest_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * MAX_NESTING + "0" + "]" * MAX_NESTING)
    assert read_json(path)
    text = json.dumps({"limits": [2**63 - 1, -(2**63), 1e308, -0.0], "text": ""})
    path.write_text(text + " " * (MAX_JSON_BYTES - len(text)))
    assert read_json(path)["limits"][:2] == [2**63 - 1, -(2**63)]


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    for read, name, most in ((read_json, "a.json", MAX_JSON_BYTES), (read_toml, "a.toml", MAX_TOML_BYTES)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(200 << 20)  # of zeros that take no room on the disk
        with pytest.raises(CheckpointError, match=f"{name}.*{most}"):
            read(tmp_path / name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["none", "folder", "pipe", "/dev/zero", "a\0b", "\ud800", "x" * 300])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, read_toml):
        with pytest.raises(ConfigError):
            read(tmp_path / name, ConfigError)


@pytest.mark.parametrize(
    "text",
    [
        *("x = " + "[" * depth + "]" * depth for depth in (MAX_NESTING + 2, 500, 1500)),
        *("x = " + "{a=" * depth + "1" + "}" * depth for depth in (MAX_NESTING + 2, 500, 1200)),
        *(".".join("a" * count) + " = 1" for count in (MAX_NESTING + 2, 1000, 30_000)),
        "\n".join(".".join("a" * 1500) + f".b{n} = 1" for n in range(20)),
        "[" + ".".join("a" * 1500) + "]",
        'x = "a\\u0000b"',
        *("x = nan", "x = -inf", "x = 0x" + "f" * 20, "x = " + "9" * 4000, "x = 1e999", "x = " + "9" * 5000),
        *(
            "x = ",
            "x",
            "[x",
            "x = 1\nx = 2",
            "[a]\n[a]",
            'x = "\\uD800"',
            "x = 2030-13-40",
            "\\",
            "x = 'a\n'",
        ),
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_hostile_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="train.toml"):
        read_toml(path, ConfigError)


def test_toml_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_bytes('x = "é"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="train.toml"):
        read_toml(tmp_path / "train.toml", ConfigError)


def test_plain_values_are_returned_as_they_are() -> None:
    values = {"a": [1, 2.5, None, True, "x"], "b": {}, "c": []}
    assert check_plain(values, "x") is values
    with pytest.raises(ArdiffError):
        check_plain({"a": [[math.nan]]}, "x")
