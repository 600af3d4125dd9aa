# SPDX-License-Identifier: Apache-2.0
"""Tries the command line: odd arguments, closed and full outputs, signals at any moment.

    python -m tools.fuzz.command_line --lines 200
    python -m tools.fuzz.command_line --seed 1 --line 17      # one line again, with what it printed

Each line runs in a process and a folder of its own. Must not happen: a traceback, a line that asks to report
a fault of ours, an exit code that does not say what happened, a process that has not ended after a minute
of processor time, or five minutes, since a signal (every line gets one after a while), and a file that is
neither whole nor absent.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import faulthandler
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from ardiff_engine import cli, media
from ardiff_engine.errors import ArdiffError
from tools.fuzz.command_lines import line, make_odd_names

UNDISTURBED = 10.0
"""Seconds until a line that nobody has stopped is stopped."""
CPU_SECONDS = 60.0
"""Processor time that a line may take to end after a signal."""
WALL_SECONDS = 300.0
"""The same on the clock: on a busy machine a process may wait for long."""
TRACES = ("Traceback (most recent call last)", "Exception ignored", "fault of ardiff-engine")
OUTPUTS = ("kept", "kept", "kept", "kept", "reader gone", "full", "not there")
PR_SET_CHILD_SUBREAPER = 36
OWN_PROCESS = 0.1
"""Share of the lines that start Python anew. The others are forked from this process: that is quick."""


@dataclasses.dataclass(frozen=True)
class Case:
    """signal_after: seconds from the moment at which the command listens to signals; None: only patience."""

    number: int
    arguments: list[str]
    stdout: str
    stderr: str
    forked: bool
    signal: signal.Signals
    signal_after: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """code: of the process, negative for a signal that killed it. signalled: whether one was sent."""

    case: Case
    problem: str
    code: int
    signalled: bool
    errors: str


def make_case(number: int, seed: int) -> Case:
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice((signal.SIGINT, signal.SIGTERM))
    return Case(
        number,
        line(rng),
        rng.choice(OUTPUTS),
        rng.choice(OUTPUTS),
        rng.random() >= OWN_PROCESS,
        kind,
        rng.choice((None, rng.expovariate(20), rng.expovariate(2))),
    )


def attempt(case: Case, inputs: Path) -> Outcome:
    """Runs one line in a copy of `inputs`."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "work"
        shutil.copytree(inputs, folder)
        make_odd_names(folder)
        before = {path: path.stat().st_mtime_ns for path in _files(folder)}
        errors = Path(name) / "errors"
        process = _start(case, folder, errors)
        try:
            code, signalled, hang = _wait(process, case)
        finally:
            _end_all(process)
        text = errors.read_text(errors="replace")
        problem = "hang" if hang else _judge(case, code, signalled, text) or _half(folder, before)
        return Outcome(case, problem, code, signalled, text)


def _start(case: Case, folder: Path, errors: Path) -> int:
    _adopt_orphans()
    streams = [_stream(case.stdout, errors.with_name("output")), _stream(case.stderr, errors)]
    errors.touch()
    gc.collect()  # a film that was judged here has threads, which its end would wait for in the child
    child = os.fork()
    if child:
        for stream in streams:
            if stream is not None:
                os.close(stream)
        return child
    code = 99
    try:
        os.setsid()  # so that what it starts can be ended with it
        os.chdir(folder)
        # Before the streams: a file that is opened later would take the place of one that is not there.
        faulthandler.register(signal.SIGUSR1, open(errors, "a"))
        for number, stream in enumerate([os.open(os.devnull, os.O_RDONLY), *streams]):
            os.close(number) if stream is None else os.dup2(stream, number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if not case.forked:
            os.environ["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
            arguments = [argument.replace("\0", "") for argument in case.arguments]
            os.execv(sys.executable, [sys.executable, "-m", "ardiff_engine.cli", *arguments])
        sys.stdout, sys.stderr = _text(1), _text(2)
        sys.argv = ["ardiff", *case.arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = cli.console()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _stream(kind: str, kept: Path) -> int | None:
    if kind == "not there":
        return None
    if kind == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return os.open("/dev/full" if kind == "full" else kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _text(descriptor: int) -> object:
    """As Python makes it at its start."""
    try:
        os.fstat(descriptor)
    except OSError:
        return None
    errors = "strict" if descriptor == 1 else "backslashreplace"
    return open(descriptor, "w", encoding="utf-8", errors=errors, buffering=-1 if descriptor == 1 else 1)


def _wait(process: int, case: Case) -> tuple[int, bool, bool]:
    """Exit code, whether a signal was sent, and whether it had to be killed."""
    started = time.monotonic()
    while (code := _ended(process)) is None and not _listens(process):
        if time.monotonic() > started + WALL_SECONDS:
            break
        time.sleep(0.01)
    code = _until(process, UNDISTURBED if case.signal_after is None else case.signal_after)
    if code is not None:
        return code, False, False
    os.kill(process, case.signal)
    used = _processor_seconds(process)
    end = time.monotonic() + WALL_SECONDS
    while time.monotonic() < end and _processor_seconds(process) < used + CPU_SECONDS:
        code = _until(process, 0.2)
        if code is not None:
            return code, True, False
    if case.forked:
        os.kill(process, signal.SIGUSR1)  # it writes where it stands
        time.sleep(0.5)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), True, True


def _adopt_orphans() -> None:
    """Processes whose parent has ended become children of this one, which can wait for their end (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_all(group: int) -> None:
    """End what a line has started and left: it would write on into a folder that is being removed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
    _codes.pop(group, None)  # the number may come again


_codes: dict[int, int] = {}


def _ended(process: int) -> int | None:
    if process not in _codes:
        found, status = os.waitpid(process, os.WNOHANG)
        if not found:
            return None
        _codes[process] = os.waitstatus_to_exitcode(status)
    return _codes[process]


def _until(process: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while (code := _ended(process)) is None and time.monotonic() < end:
        time.sleep(0.005)
    return code


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listens(process: int) -> bool:
    """Whether it has a handler for SIGTERM: before that, Python itself is starting."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _judge(case: Case, code: int, signalled: bool, errors: str) -> str:
    if any(trace in errors for trace in TRACES):
        return "traceback"
    if code < 0 or code not in (0, 1, 2, 130, 143):
        return f"code {code}"
    if code > 128 and (not signalled or code != 128 + case.signal):
        return f"code {code}"
    if code in (1, 2) and case.stderr == "kept" and not errors and case.stdout == "kept":
        return "silent"
    return ""


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _half(folder: Path, before: dict[Path, int]) -> str:
    """The first new or changed file that is not whole."""
    for path in _files(folder):
        if any(part.startswith((".ardiff-tmp", "__pycache__", ".pytest")) for part in path.parts):
            if ".ardiff-tmp" in str(path):
                return f"left over: {path.relative_to(folder)}"
        elif before.get(path) != path.stat().st_mtime_ns:
            try:
                _read(path)
            except (ArdiffError, OSError, ValueError, SyntaxError) as error:
                return f"half a file: {path.relative_to(folder)}: {error}"
    return ""


def _read(path: Path) -> None:
    if path.suffix in (".mp4", ".webp", ".gif"):
        media.read_video(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                file.get_tensor(key)


def run(lines: int, seed: int, *, show: bool = False) -> list[Outcome]:
    """Tries lines 0, ..., lines - 1 of a seed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        inputs = _inputs(Path(name))
        outcomes = []
        for number in range(lines):
            outcomes.append(attempt(make_case(number, seed), inputs))
            if show and outcomes[-1].problem:
                _show(outcomes[-1])
    return outcomes


def _inputs(folder: Path) -> Path:
    """Made in another process: one that has used threads cannot be forked."""
    code = "import sys; from tools.fuzz.command_lines import *; make_inputs(Path(sys.argv[1]))"
    made = folder / "in"
    subprocess.run([sys.executable, "-c", code, str(made)], check=True, cwd=Path(__file__).parents[2])
    return made


def _show(outcome: Outcome) -> None:
    case = outcome.case
    print(f"{outcome.problem}: line {case.number}: {case.arguments!r}")
    print(f"  stdout {case.stdout}, stderr {case.stderr}, {'forked' if case.forked else 'own process'}, "
          f"signal {case.signal.name} after {case.signal_after}, code {outcome.code}")  # fmt: skip
    print("  " + outcome.errors[-2000:].replace("\n", "\n  "), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", type=int, help="this line alone, with what it printed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.line is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            outcome = attempt(make_case(options.line, options.seed), _inputs(Path(name)))
        _show(outcome)
        return int(bool(outcome.problem))
    outcomes = run(options.lines, options.seed, show=True)
    problems = [outcome for outcome in outcomes if outcome.problem]
    codes = collections.Counter(outcome.code for outcome in outcomes)
    signalled = sum(outcome.signalled for outcome in outcomes)
    print(f"{len(outcomes)} lines, {signalled} stopped by a signal, {len(problems)} problems; exit codes "
          + ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())))  # fmt: skip
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
