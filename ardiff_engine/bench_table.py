# SPDX-License-Identifier: Apache-2.0
"""The record of a benchmark run and its table: `ardiff bench` prints it, `--json` keeps it, `--table` and
`--compare` read it again.

    {"machine": {"cpu", "cores", "isa", "compiler", "torch", "platform"},
     "date", "commit", "rows": [...]}

The rows are the `extra_info` of the benchmarks that have an "op" there (benchmarks/README.md lists the
fields); benchmarks without one are timed, but are no part of the table.
"""

from __future__ import annotations

import datetime
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ardiff_engine.errors import ConfigError
from ardiff_engine.parsing import read_json

Record = dict[str, Any]
NUMBERS = ("threads", "seconds", "opponent_seconds", "ratio")
TEXTS = ("op", "shape", "opponent")
OPTIONAL = ("bar", "share", "share_bar", "share_of")
MACHINE = ("cpu", "cores", "isa", "torch")
MAX_RECORD_BYTES = 1 << 24
_HEADER = ("op", "shape", "threads", "ours", "opponent", "its time", "ratio", "bar", "share of", "bar of it")


def record(measured: Mapping[str, Any]) -> Record:
    """Of pytest-benchmark's JSON, what the table needs, with the machine it was measured on."""
    rows = [entry["extra_info"] for entry in measured["benchmarks"] if "op" in entry.get("extra_info", {})]
    for row in rows:
        _complete(row)
    return {"machine": _machine(), "date": _today(), "commit": _commit(), "rows": rows}


def read(path: str | Path) -> Record:
    """Raises ConfigError where the file is no record."""
    found = read_json(Path(path), ConfigError, most=MAX_RECORD_BYTES)
    try:
        for row in found["rows"]:
            _complete(row, f"{path}: ")
        facts = [found["date"], found["commit"], *(found["machine"][name] for name in MACHINE)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no benchmark record ({type(error).__name__}: {error}). Name a file that "
            "`ardiff bench --json` wrote."
        ) from error
    if not all(isinstance(fact, str | int) for fact in facts):
        raise ConfigError(f"{path}: a benchmark record has texts about its machine.")
    return dict(found)


def markdown(found: Record) -> str:
    """The table with date and machine; a ratio or share below its bar is followed by "below"."""
    machine = found["machine"]
    intro = (
        f"{machine['cpu']}, {machine['isa']}, {machine['cores']} cores, torch {machine['torch']}, "
        f"{found['date']}, commit {found['commit']}"
    )
    return f"{intro}\n\n{_table(_HEADER, map(_cells, found['rows']))}"


def comparison(before: Record, after: Record) -> str:
    """What both records have: our time before and after, and their ratio; above 1 is faster."""
    older = {_key(row): row for row in before["rows"]}
    header = ("op", "shape", "threads", "before", "after", "times faster", "ratio before", "ratio after")
    rows = [
        (
            *map(str, _key(row)[:3]),
            _time(old["seconds"]),
            _time(row["seconds"]),
            f"{old['seconds'] / row['seconds']:.2f}",
            f"{old['ratio']:.2f}",
            f"{row['ratio']:.2f}",
        )
        for row in after["rows"]
        if (old := older.get(_key(row))) is not None
    ]
    intro = "\n".join(
        f"{name}: {found['commit']}, {found['date']}, {found['machine']['cpu']}"
        for name, found in (("before", before), ("after", after))
    )
    return f"{intro}\n\n{_table(header, rows)}"


def _key(row: Mapping[str, Any]) -> tuple[str, str, int, str]:
    return row["op"], row["shape"], row["threads"], row["opponent"]


def _complete(row: Mapping[str, Any], origin: str = "") -> None:
    """ConfigError where a field is missing or of the wrong kind."""
    for name in (*TEXTS, *NUMBERS, *OPTIONAL):
        value: Any = row.get(name)
        if value is None and name in OPTIONAL:
            continue
        fits = isinstance(value, str) if name in (*TEXTS, "share_of") else isinstance(value, int | float)
        if not fits or (name in NUMBERS and not 0 < value < math.inf):
            raise ConfigError(
                f"{origin}extra_info of {row.get('op', 'a benchmark')}: got {name}={value!r}, expected the "
                "fields that benchmarks/README.md describes."
            )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    share, share_of = row.get("share"), row.get("share_of", "")
    return (
        row["op"],
        row["shape"],
        str(row["threads"]),
        _time(row["seconds"]),
        row["opponent"],
        _time(row["opponent_seconds"]),
        _judged(f"{row['ratio']:.2f}", row["ratio"], row.get("bar")),
        "" if row.get("bar") is None else f"{row['bar']:g}",
        "" if share is None else _judged(f"{share_of} {100 * share:.0f} %", share, row.get("share_bar")),
        "" if row.get("share_bar") is None else f"{100 * row['share_bar']:.0f} %",
    )


def _judged(text: str, value: float, bar: float | None) -> str:
    return f"{text} below" if bar is not None and value < bar else text


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown, with columns as wide as in print, so that it is a table on a terminal too."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _machine() -> dict[str, Any]:
    from ardiff_engine import info

    facts = info.collect()
    native = facts["native"]
    return {
        "cpu": facts["cpu"]["model"],
        "cores": os.cpu_count(),
        "isa": native.get("isa", "no native module"),
        "compiler": native.get("compiler", ""),
        "torch": facts["packages"]["torch"],
        "platform": facts["platform"],
    }


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _commit() -> str:
    """Of the checkout, with + where it has changes; empty outside of one."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()
