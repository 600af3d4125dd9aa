# SPDX-License-Identifier: Apache-2.0
"""The record of the passes: bounded, a valid trace, a picture with the right pages in the right place."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import inside
from PIL import Image

import ardiff_engine as ade
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine.report import stream_tick
from ardiff_engine.errors import CheckpointError, ConfigError, MediaError
from ardiff_engine.observe import chrome_trace, pages_picture
from ardiff_engine.observe.recorder import Recorder
from ardiff_engine.observe.records import PassRecord, StreamTick

POOL = 20


def one_pass(
    index: int,
    streams: tuple[StreamTick, ...] = (),
    *,
    began: float | None = None,
    seconds: float = 0.01,
    phases: tuple[float, float, float, float] = (0.001, 0.001, 0.005, 0.001),
    held: int | None = None,
) -> PassRecord:
    start = 100 + 0.02 * index if began is None else began
    pages = sum(stream.pages for stream in streams) if held is None else held
    return PassRecord(index, start, start + seconds, *phases, streams, pages, POOL)


def part(stream: int, updates: int = 3, commits: int = 1, pages: int = 5, label: str = "") -> StreamTick:
    return StreamTick(stream, label, 2, 1 + updates + commits, updates, commits, pages)


def recorded(*records: PassRecord, capacity: int = 100) -> Recorder:
    recorder = Recorder(capacity)
    for record in records:
        recorder.add(record)
    return recorder


def trace(recorder: Recorder, path: Path) -> dict[str, Any]:
    recorder.write_chrome_trace(path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    check_format(content)
    return content


def check_format(content: dict[str, Any]) -> None:
    """The rules of the trace event format for the kinds of events that are used here."""
    assert set(content) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert content["displayTimeUnit"] in ("ms", "ns") and isinstance(content["otherData"], dict)
    named: set[int] = set()
    rows: dict[int, list[tuple[float, float]]] = {}
    for event in content["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"] and isinstance(event["pid"], int)
        assert event["ph"] in ("M", "X", "C") and isinstance(event["args"], dict)
        if event["ph"] == "M":
            kinds = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}
            assert set(event["args"]) == {kinds[event["name"]]} and "ts" not in event
            if event["name"] == "thread_name":
                named.add(event["tid"])
            continue
        assert isinstance(event["ts"], int | float) and event["ts"] >= 0
        if event["ph"] == "C":
            assert event["args"] and all(isinstance(value, int) for value in event["args"].values())
            continue
        assert isinstance(event["cat"], str) and event["dur"] >= 0 and event["tid"] in named
        # Back to the whole nanoseconds that were written: a viewer rounds in the same way.
        start = round(event["ts"] * 1000)
        rows.setdefault(event["tid"], []).append((start, start + round(event["dur"] * 1000)))
    for spans in rows.values():
        check_nesting(spans)


def check_nesting(spans: list[tuple[float, float]]) -> None:
    """Slices of one row follow or contain each other; viewers drop those that overlap in part."""
    open_ends: list[float] = []
    for start, end in spans:
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1]
        open_ends.append(end)


def slices(content: dict[str, Any], row: str) -> list[dict[str, Any]]:
    tids = [
        event["tid"]
        for event in content["traceEvents"]
        if event["name"] == "thread_name" and event["args"]["name"] == row
    ]
    assert len(tids) == 1
    return [e for e in content["traceEvents"] if e["ph"] == "X" and e["tid"] == tids[0]]


def counters(content: dict[str, Any], name: str) -> list[tuple[float, dict[str, int]]]:
    return [(e["ts"], e["args"]) for e in content["traceEvents"] if e["ph"] == "C" and e["name"] == name]


# --- the ring


def test_the_oldest_passes_leave_and_are_counted():
    recorder = recorded(*(one_pass(i) for i in range(5)), capacity=3)
    assert [record.index for record in recorder.records()] == [2, 3, 4] and recorder.dropped == 2
    assert recorded(one_pass(0)).dropped == 0
    with pytest.raises(ConfigError, match="capacity"):
        Recorder(0)


def test_it_can_be_read_while_it_is_written():
    recorder, stop = Recorder(50), threading.Event()

    def write() -> None:
        index = 0
        while not stop.is_set():
            recorder.add(one_pass(index))
            index += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            indices = [record.index for record in recorder.records()]
            assert indices == list(range(indices[0], indices[0] + len(indices))) if indices else True
    finally:
        stop.set()
        writer.join()
    assert len(recorder.records()) <= 50


def test_a_tick_of_a_stream(tiny_model):
    """lag 2, 4 steps: in its fifth tick a stream commits frame 0 and advances the next two."""
    pipe = ade.Pipeline.from_pretrained(tiny_model)
    solver = DDIM(pipe.schedule, 4, prediction=pipe.prediction)
    engine = ade.Engine(pipe.transformer, solver=solver, max_pages=64)
    stream = engine.submit(ade.Request(num_frames=6, lag=2, seed=9))
    for _ in range(4):
        engine.step(1)
    feed = inside(stream).feeder.next()
    engine.step(1)
    held = engine.stats().pages_held
    assert (
        stream_tick(inside(stream), feed) == StreamTick(0, "(seed 9, lag 2)", 0, 2, 2, 1, held) and held > 0
    )
    assert stream_tick(inside(stream), None) == StreamTick(0, "(seed 9, lag 2)", 0, 0, 0, 0, held)
    stream.cancel()
    assert stream_tick(inside(stream), feed).pages == 0


# --- the trace


def test_a_row_per_stream_and_the_phases_of_the_engine(tmp_path):
    recorder = recorded(
        one_pass(7, (part(0, label="cat"), part(3, updates=1, commits=0))),
        one_pass(8, (part(3, pages=2),), seconds=0.015),
    )
    content = trace(recorder, tmp_path / "trace.json")
    engine = slices(content, "engine")
    assert [e["name"] for e in engine] == [
        *("pass 7", "plan", "pack", "model", "solver"),
        *("pass 8", "plan", "pack", "model", "solver"),
    ]
    times = [(e["ts"], e["dur"]) for e in engine]
    assert times[:5] == [(0, 10000), (0, 1000), (1000, 1000), (2000, 5000), (7000, 1000)]
    assert times[5] == (20000, 15000)
    assert engine[0]["args"] == {"pass": 7, "streams": 2, "updates": 4, "commits": 1}
    (cat,) = slices(content, "stream 0 cat")
    assert cat["name"] == "frames 2-5" and (cat["ts"], cat["dur"]) == (0, 10000)
    assert cat["args"] == {"pass": 7, "updates": 3, "commits": 1, "pages": 5}
    assert [e["name"] for e in slices(content, "stream 3")] == ["frame 2", "frames 2-5"]


def test_counters_of_pages_and_cells(tmp_path):
    recorder = recorded(one_pass(0, (part(0), part(1))), one_pass(1, (part(1, updates=2),), held=6))
    content = trace(recorder, tmp_path / "trace.json")
    assert counters(content, "pages") == [(0, {"held": 10, "free": 10}), (20000, {"held": 6, "free": 14})]
    assert counters(content, "cells") == [
        (0, {"updates": 6, "commits": 2}),
        (20000, {"updates": 2, "commits": 1}),
        (30000, {"updates": 0, "commits": 0}),
    ]


def test_streams_that_only_hold_pages_have_no_slice(tmp_path):
    content = trace(recorded(one_pass(0, (part(0), part(1, 0, 0)))), tmp_path / "trace.json")
    assert len(slices(content, "stream 0")) == 1 and slices(content, "stream 1") == []
    assert slices(content, "engine")[0]["args"]["streams"] == 1


def test_a_trace_says_how_much_is_missing(tmp_path):
    content = trace(recorded(*(one_pass(i) for i in range(5)), capacity=2), tmp_path / "trace.json")
    assert content["otherData"] == {"passes": 2, "dropped_passes": 3}
    assert slices(content, "engine")[0]["name"] == "pass 3" and slices(content, "engine")[0]["ts"] == 0


def test_an_empty_trace_is_a_trace(tmp_path):
    content = trace(Recorder(), tmp_path / "trace.json")
    assert all(event["ph"] == "M" for event in content["traceEvents"])


def test_labels_may_hold_anything(tmp_path):
    label = '"quoted" \\ \n</script> \u2028 émoji 🎞 \ud800'
    content = trace(recorded(one_pass(0, (part(0, label=label),))), tmp_path / "trace.json")
    assert len(slices(content, f"stream 0 {label}")) == 1


seconds = st.floats(0, 0.5, allow_subnormal=False)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(seconds, seconds, st.tuples(seconds, seconds, seconds, seconds)), max_size=8))
def test_slices_nest_whatever_the_clocks_say(gaps):
    """Also where the phases add up to more than their pass, and for passes that follow at once."""
    records, now = [], 1e5
    for index, (gap, length, phases) in enumerate(gaps):
        records.append(one_pass(index, (part(0),), began=now + gap, seconds=length, phases=phases))
        now += gap + length
    content = {"displayTimeUnit": "ms", "otherData": {}, "traceEvents": list(chrome_trace.events(records))}
    check_format(json.loads(json.dumps(content, allow_nan=False)))


def test_a_trace_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    recorder = recorded(one_pass(0))
    recorder.write_chrome_trace(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chrome_trace, "_pass", full)
    with pytest.raises(CheckpointError, match="No space left"):
        recorder.write_chrome_trace(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["trace.json"]


@pytest.fixture
def engine(tiny_model) -> ade.Engine:
    pipe = ade.Pipeline.from_pretrained(tiny_model)
    solver = DDIM(pipe.schedule, 4, prediction=pipe.prediction)
    return ade.Engine(pipe.transformer, solver=solver, max_pages=64)


def test_the_trace_of_an_engine_is_what_it_did(engine, tmp_path):
    """Only the block is recorded: one stream runs before it, two in it, and their sums are the engine's."""
    engine.submit(ade.Request(num_frames=2, lag=2)).result()
    before = engine.stats()
    with engine.trace(tmp_path / "trace.json") as recorder:
        streams = [engine.submit(ade.Request(num_frames=5, lag=lag, seed=lag)) for lag in (1, 4)]
        for stream in streams:
            stream.result()
    after = engine.stats()
    engine.submit(ade.Request(num_frames=2, lag=2)).result()
    content = json.loads((tmp_path / "trace.json").read_text())
    check_format(content)
    passes = [event for event in slices(content, "engine") if event["name"].startswith("pass")]
    assert len(passes) == len(recorder.records()) == after.passes - before.passes
    assert sum(event["args"]["updates"] for event in passes) == after.updates - before.updates
    for number, lag in ((1, 1), (2, 4)):
        row = slices(content, f"stream {number} (seed {lag}, lag {lag})")
        assert sum(event["args"]["updates"] for event in row) == 5 * 4
    assert max(held["held"] for _, held in counters(content, "pages")) <= after.pages_total
    assert recorder.records()[-1].pages_held == 0


def test_a_trace_is_written_also_when_the_block_ends_by_an_error(engine, tmp_path):
    with pytest.raises(KeyboardInterrupt), engine.trace(tmp_path / "trace.json"):
        stream = engine.submit(ade.Request(num_frames=4, lag=2))
        engine.step(1)
        raise KeyboardInterrupt
    content = json.loads((tmp_path / "trace.json").read_text())
    assert [e["name"] for e in slices(content, "engine") if e["name"].startswith("pass")] == ["pass 0"]
    assert not stream.done
    assert engine._recorders == []


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(engine, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(CheckpointError, match="writing"), engine.trace(tmp_path / "a file" / "trace.json"):
        pytest.fail("the block has begun")
    assert engine._recorders == []


# --- the picture


def area(path: Path) -> np.ndarray:
    width, height = pages_picture.AREA
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    return pixels[pages_picture.ABOVE :, pages_picture.LEFT :][:height, :width]


def level(pages: float) -> int:
    """Row of the area at which `pages` are reached; the pool's 20 pages and 5 % more fill it."""
    return pages_picture.AREA[1] - round(pages / 21 * pages_picture.AREA[1])


def test_pages_are_stacked_by_stream(tmp_path):
    first = one_pass(0, (part(4, pages=3), part(1, pages=6)))
    second = one_pass(1, (part(4, pages=8),), held=12)
    recorded(first, second).plot_pages(tmp_path / "new" / "pages.png")
    pixels = area(tmp_path / "new" / "pages.png")
    # Two passes of 10 ms, 20 ms apart: the first is shown for the first two thirds.
    left, right = pixels[:, 300], pixels[:, 900]
    assert tuple(left[level(3)]) == pages_picture.colour(1)
    assert tuple(left[level(7.5)]) == pages_picture.colour(4)
    assert tuple(left[level(12)]) == pages_picture.PAPER
    assert tuple(right[level(4)]) == pages_picture.colour(4)
    assert tuple(right[level(10)]) == pages_picture.OTHERS
    assert tuple(left[level(9)]) == tuple(right[level(12)]) == pages_picture.INK
    assert tuple(left[level(20)]) == tuple(right[level(20)]) == pages_picture.POOL


def test_a_column_shows_its_fullest_pass(tmp_path):
    records = [one_pass(i, (part(0, pages=15 if i == 5000 else 2),)) for i in range(10000)]
    recorded(*records, capacity=10000).plot_pages(tmp_path / "pages.png")
    row = area(tmp_path / "pages.png")[level(10)]
    # Its line goes up in one column and down in the next; all other columns stay below.
    assert [x for x, pixel in enumerate(row) if tuple(pixel) != pages_picture.PAPER] == [500, 501]
    assert {tuple(row[500]), tuple(row[501])} == {pages_picture.INK}


def test_shared_pages_may_rise_above_the_line(tmp_path):
    recorded(one_pass(0, (part(0, pages=18), part(1, pages=18)), held=19)).plot_pages(tmp_path / "pages.png")
    pixels = area(tmp_path / "pages.png")
    assert tuple(pixels[5, 500]) == pages_picture.PAPER
    assert tuple(pixels[40, 500]) == pages_picture.colour(1)


@pytest.mark.parametrize(
    "records",
    [
        [one_pass(0)],
        [one_pass(0, seconds=0.0)],
        [one_pass(i, tuple(part(s, label="x" * 10_000) for s in range(200)), held=20) for i in range(3)],
        [PassRecord(0, 0.0, 1e4, 0, 0, 0, 0, (part(0, pages=10**6),), 10**6, 10**6)],
    ],
    ids=["no streams", "no time", "many streams with long labels", "many pages"],
)
def test_any_record_can_be_drawn(tmp_path, records):
    recorded(*records).plot_pages(tmp_path / "pages.png")
    assert area(tmp_path / "pages.png").shape == (420, 1000, 3)


def test_the_same_record_gives_the_same_file(tmp_path):
    recorder = recorded(*(one_pass(i, (part(i % 3),)) for i in range(9)), capacity=5)
    for name in ("one.png", "two.png"):
        recorder.plot_pages(tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_mistakes_are_typed_errors(tmp_path):
    with pytest.raises(ConfigError, match="nothing to draw"):
        Recorder().plot_pages(tmp_path / "pages.png")
    (tmp_path / "file").write_bytes(b"")
    for name in ("pages.jpg", "pages", "file/pages.png"):
        with pytest.raises(MediaError):
            recorded(one_pass(0)).plot_pages(tmp_path / name)
    with pytest.raises(CheckpointError):
        recorded(one_pass(0)).write_chrome_trace(tmp_path / "none" / "trace.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
