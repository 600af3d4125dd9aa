# SPDX-License-Identifier: Apache-2.0
"""Passes as a trace in the trace event format (JSON object form), for ui.perfetto.dev and chrome://tracing.

One process. The first row is the engine: a slice per pass, inside it one per phase. Then a row per stream: a
slice for every pass that fed it. Counters: pages (held, free) and cells (updates, commits) of each pass.
Times are microseconds since the first pass; boundaries are whole nanoseconds, so that slices nest exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

from ardiff_engine.files import write_atomic
from ardiff_engine.observe.records import PassRecord, StreamTick

PROCESS = 1
ENGINE_ROW = 1
FIRST_STREAM_ROW = 2
HEAD = '{"displayTimeUnit":"ms","otherData":%s,"traceEvents":[\n'

Event = dict[str, Any]


def write(records: Sequence[PassRecord], path: str | PathLike[str], *, dropped: int = 0) -> None:
    """Write the trace of `records`; `dropped` older passes are mentioned. Raises CheckpointError if the disk
    refuses; `path` is then unchanged.
    """
    # Line by line: as one document, a long trace would need many times its size in memory.
    write_atomic(path, lambda file: file.writelines(_lines(records, dropped)))


def events(records: Sequence[PassRecord]) -> Iterator[Event]:
    """The trace events of the passes, metadata first, then in order of time within every row."""
    yield _name("process_name", ENGINE_ROW, "ardiff-engine")
    yield from _row(ENGINE_ROW, "engine")
    for stream, label in _streams(records).items():
        yield from _row(FIRST_STREAM_ROW + stream, f"stream {stream} {label}".rstrip())
    if not records:
        return
    origin = records[0].began
    for record in records:
        yield from _pass(record, origin)
    # Counters hold their last value, so the end needs one of its own.
    yield _counter("cells", _nanoseconds(records[-1].ended - origin), {"updates": 0, "commits": 0})


def _lines(records: Sequence[PassRecord], dropped: int) -> Iterator[bytes]:
    yield (HEAD % _json({"passes": len(records), "dropped_passes": dropped})).encode()
    separator = ""
    for event in events(records):
        yield (separator + _json(event)).encode()
        separator = ",\n"
    yield b"\n]}\n"


def _pass(record: PassRecord, origin: float) -> Iterator[Event]:
    start, end = _nanoseconds(record.began - origin), _nanoseconds(record.ended - origin)
    updates = sum(stream.updates for stream in record.streams)
    commits = sum(stream.commits for stream in record.streams)
    fed = [stream for stream in record.streams if stream.fed]
    totals = {"pass": record.index, "streams": len(fed), "updates": updates, "commits": commits}
    yield _slice(f"pass {record.index}", "pass", ENGINE_ROW, start, end, totals)
    begun = start
    for phase, seconds in (
        ("plan", record.plan_seconds),
        ("pack", record.pack_seconds),
        ("model", record.model_seconds),
        ("solver", record.solver_seconds),
    ):
        # Clocks are read one by one, so the phases may add up to a little more than the pass.
        ended = min(begun + _nanoseconds(seconds), end)
        yield _slice(phase, "phase", ENGINE_ROW, begun, ended, {"pass": record.index})
        begun = ended
    for stream in fed:
        row = FIRST_STREAM_ROW + stream.stream
        yield _slice(_frames(stream), "stream", row, start, end, _counts(record, stream))
    held = record.pages_held
    yield _counter("pages", start, {"held": held, "free": record.pages_total - held})
    yield _counter("cells", start, {"updates": updates, "commits": commits})


def _streams(records: Sequence[PassRecord]) -> dict[int, str]:
    """Label of every stream, by number."""
    labels = {stream.stream: stream.label for record in records for stream in record.streams}
    return dict(sorted(labels.items()))


def _frames(stream: StreamTick) -> str:
    if stream.first_frame == stream.last_frame:
        return f"frame {stream.first_frame}"
    return f"frames {stream.first_frame}-{stream.last_frame}"


def _counts(record: PassRecord, stream: StreamTick) -> Event:
    return {
        "pass": record.index,
        "updates": stream.updates,
        "commits": stream.commits,
        "pages": stream.pages,
    }


def _row(row: int, name: str) -> Iterator[Event]:
    yield _name("thread_name", row, name)
    yield {
        "name": "thread_sort_index",
        "ph": "M",
        "pid": PROCESS,
        "tid": row,
        "args": {"sort_index": row},
    }


def _name(what: str, row: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": PROCESS, "tid": row, "args": {"name": name}}


def _slice(name: str, category: str, row: int, start: int, end: int, arguments: Event) -> Event:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start / 1000,
        "dur": (end - start) / 1000,
        "pid": PROCESS,
        "tid": row,
        "args": arguments,
    }


def _counter(name: str, at: int, values: dict[str, int]) -> Event:
    return {"name": name, "ph": "C", "ts": at / 1000, "pid": PROCESS, "args": values}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _json(value: Event) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
