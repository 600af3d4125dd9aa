# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of the command line notices what it is there to notice, and finds nothing in a few lines."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import ALL
from helpers.waiting import PATIENCE

from ardiff_engine import commands

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.fuzz import command_line, command_lines

LINES = 200 if ALL else 8
QUIET = command_line.Case(0, ["info"], "kept", "kept", True, signal.SIGTERM, None)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def half_a_video() -> int:
    Path("o.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    return 0


def leftover() -> int:
    Path(".ardiff-tmp-1").mkdir()
    Path(".ardiff-tmp-1", "o.mp4").touch()
    return 0


def a_trace() -> int:
    print("Traceback (most recent call last):", file=sys.stderr)
    return 2


def deaf() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda *_: None)
    while True:
        signal.pause()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (half_a_video, "half a file"),
        (leftover, "left over"),
        (a_trace, "traceback"),
        (lambda: {}["x"], "traceback"),  # a fault of ours, which asks to be reported
        (lambda: os.abort(), "code -6"),
        (lambda: 7, "code 7"),
        (lambda: 130, "code 130"),
        (lambda: 1, "silent"),
        (deaf, "hang"),
        (lambda: 0, ""),
    ],
)
def test_the_fuzzer_notices(
    command: Callable[[], int], problem: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "info", lambda options: command())
    for limit in ("UNDISTURBED", "CPU_SECONDS", "WALL_SECONDS"):
        monkeypatch.setattr(command_line, limit, 2.0 if command is deaf else PATIENCE)
    outcome = command_line.attempt(QUIET, inputs)
    assert outcome.problem.startswith(problem) and bool(outcome.problem) == bool(problem), outcome


def test_what_a_command_leaves_is_ended(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that still writes would fill the folder that is being removed."""

    def leaves_a_writer() -> int:
        writer = os.fork()
        if not writer:
            for number in itertools.count():
                Path(f"file{number}").touch()
        (tmp_path / "writer").write_text(str(writer))
        return 0

    monkeypatch.setattr(commands, "info", lambda options: leaves_a_writer())
    assert command_line.attempt(QUIET, inputs).problem == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "writer").read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_waits_ends_by_its_signal(
    number: signal.Signals, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(_options: object) -> int:
        while True:  # a signal that comes just before `signal.pause()` would not end it
            time.sleep(0.01)

    monkeypatch.setattr(commands, "info", waits)
    outcome = command_line.attempt(dataclasses.replace(QUIET, signal=number, signal_after=0.2), inputs)
    assert (outcome.problem, outcome.code) == ("", 128 + number) and "stopped" in outcome.errors


def test_lines_are_those_of_the_seed_and_use_every_command() -> None:
    cases = [command_line.make_case(number, 3) for number in range(300)]
    assert cases == [command_line.make_case(number, 3) for number in range(300)]
    used = {case.arguments[0] for case in cases if case.arguments}
    assert used >= {"generate", "stream", "train", "bench", "info", "convert"}
    values = {value.partition("=")[2] or value for case in cases for value in case.arguments}
    assert len(values & set(command_lines.PATHS)) > 30 and len(values & set(command_lines.NUMBERS)) > 10


@pytest.mark.slow
def test_nothing_is_found() -> None:
    """In processes of their own: one that has run other tests has threads, and cannot be forked."""
    code = f"import sys; from tools.fuzz.command_line import main; sys.exit(main(['--lines', '{LINES}']))"
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
