# SPDX-License-Identifier: Apache-2.0
"""Tries hostile files, each in a forked process of its own, and counts what must not happen.

A module of this folder lists `Kind`s and ends with `sys.exit(main(KINDS))`:

    python -m tools.fuzz.files --files 10000 --seed 1      # a campaign
    python -m tools.fuzz.files --kind json --case 417      # one case again, in this process

Must not happen: a crash (the process died), a hang (60 s of processor time, or 300 s), an error that is no
`ArdiffError`, an error that does not name the file, more memory than 4 times the file and 1 GB, and an
escape: a file opened outside the target, a socket, a program, a name changed elsewhere (`traps` and an audit
hook watch). The same seed makes the same files.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ardiff_engine.errors import ArdiffError
from tools.fuzz.traps import Traps

CPU_SECONDS = 60
"""Of processor time, which grows tenfold on a busy machine as well: new pages cost what its host takes."""
WALL_SECONDS = 300
MEMORY_FACTOR = 4
MEMORY_BYTES = 1 << 30
# Above the bar, so that what exceeds the bar is measured instead of refused by the system.
HARD_MEMORY_BYTES = 3 << 30
PROBLEMS = ("crash", "hang", "untyped", "unnamed", "memory", "escape")

Make = Callable[[random.Random, Path, Traps], Path]
Read = Callable[[Path], object]


@dataclasses.dataclass(frozen=True)
class Kind:
    """make: writes one hostile file or folder into an empty folder and returns its path. read: what is under
    test; it runs in an empty working folder, where it may also write. names_file: its errors must say which
    file they are about. share: how many of these files are made for one of the others."""

    name: str
    make: Make
    read: Read
    names_file: bool = True
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """problem: one of PROBLEMS, or "" when all is well; kind_of_end: "read", or the typed error's class."""

    kind: str
    case: int
    problem: str
    kind_of_end: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


def run(
    kinds: Sequence[Kind], files: int, seed: int, *, keep: Path | None = None, show: bool = False
) -> list[Outcome]:
    """Tries `files` files, shared out among the kinds, a first one of each, a second one, and so on. Those
    with a problem are kept in the folder `keep`. Ctrl-C ends it; what was tried by then is returned."""
    total = sum(kind.share for kind in kinds)
    counts = [max(1, round(files * kind.share / total)) for kind in kinds]
    cases = [
        (case / count, kind, case) for kind, count in zip(kinds, counts, strict=True) for case in range(count)
    ]
    outcomes: list[Outcome] = []
    frozen_before = gc.get_freeze_count()
    gc.collect()
    gc.freeze()  # what is loaded by now stays, and need not be looked through before every file
    try:
        with contextlib.suppress(KeyboardInterrupt), _traps() as traps:
            for _, kind, case in sorted(cases, key=lambda entry: entry[0]):
                outcome = attempt(kind, case, seed, keep, traps)
                outcomes.append(outcome)
                if outcome.problem and show:
                    last_line = outcome.detail.splitlines()[-1:]
                    print(f"{outcome.problem}: {kind.name} {case}: {last_line}", flush=True)
    finally:
        if not frozen_before:  # else it is not ours alone
            gc.unfreeze()
    return outcomes


def attempt(
    kind: Kind, case: int, seed: int, keep: Path | None = None, traps: Traps | None = None
) -> Outcome:
    """Makes one file and reads it in a forked process."""
    if traps is None:
        with _traps() as own:
            return attempt(kind, case, seed, keep, own)
    with _made(kind, case, seed, traps) as (path, scratch):
        outcome = _watched(kind, case, path, scratch, traps)
        if outcome.problem and keep is not None:
            kept = keep / f"{outcome.problem}-{kind.name}-{seed}-{case}"
            kept.mkdir(parents=True, exist_ok=True)
            (kept / "detail.txt").write_text(outcome.detail, encoding="utf-8", errors="replace")
            with contextlib.suppress(OSError, shutil.Error):
                copy: Callable[..., object] = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, kept / path.name)
    return outcome


@contextlib.contextmanager
def _traps() -> Iterator[Traps]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, Traps(Path(name).resolve() / "traps") as traps:
        yield traps


@contextlib.contextmanager
def _made(kind: Kind, case: int, seed: int, traps: Traps) -> Iterator[tuple[Path, Path]]:
    rng = random.Random(zlib.crc32(f"{kind.name}/{seed}/{case}".encode()))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name).resolve()
        (root / "given").mkdir()
        (root / "scratch").mkdir()
        path = kind.make(rng, root / "given", traps)
        traps.sprung()  # what the making of the file did does not count
        yield path, root / "scratch"


def _watched(kind: Kind, case: int, path: Path, scratch: Path, traps: Traps) -> Outcome:
    size = _bytes_of(path)
    reader, writer = os.pipe()
    started = time.monotonic()
    gc.collect()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(kind, path, scratch, traps, size, writer)
    os.close(writer)
    told, timed_out = _read_all(reader, started + WALL_SECONDS)
    if timed_out:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    report: dict[str, Any] = json.loads(told) if told.endswith(b"}") else {}
    escapes = report.get("escapes", []) + traps.sprung()
    megabytes = report.get("bytes", 0) / 2**20

    def outcome(problem: str, end: str, detail: str) -> Outcome:
        return Outcome(kind.name, case, problem, end, detail, seconds, megabytes)

    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if escapes:
        return outcome("escape", report.get("end", ""), "\n".join(escapes))
    if timed_out or number == signal.SIGXCPU:
        return outcome("hang", "", f"{seconds:.1f} s of processor time, {time.monotonic() - started:.1f} s")
    if not report:
        return outcome("crash", "", f"signal {number}" if number else f"exit code {status >> 8}")
    if report["bytes"] > MEMORY_FACTOR * size + MEMORY_BYTES:
        return outcome("memory", report["end"], f"{megabytes:.0f} MB for a file of {size} bytes")
    return outcome(report["problem"], report["end"], report["detail"])


def _read_all(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What the child wrote until it ended, and whether the deadline came first."""
    parts = []
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts), False
            parts.append(part)
    return b"".join(parts), True


def _child(kind: Kind, path: Path, scratch: Path, traps: Traps, size: int, writer: int) -> None:
    """Reads the file under limits, tells the parent how it went, and ends this process."""
    faulthandler.disable()
    os.environ["PATH"] = traps.path
    os.chdir(scratch)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    pages, resident = _memory()
    limit = pages + MEMORY_FACTOR * size + HARD_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    escapes: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, args: _audit(event, args, (path.parent, scratch), escapes, watching))
    problem, end, detail = "", "read", ""
    try:
        kind.read(path)
    except ArdiffError as error:
        end = type(error).__name__
        text = str(error)
        if kind.names_file and path.name not in text and str(path) not in text:
            problem, detail = "unnamed", f"{end}: {text[:2000]}"
    except BaseException:
        problem, end, detail = "untyped", "", traceback.format_exc()[-4000:]
    watching[0] = False
    report = {
        "problem": problem,
        "end": end,
        "detail": detail,
        "escapes": escapes[:20],
        "bytes": max(0, _status("VmHWM") - resident),
    }
    os.write(writer, json.dumps(report).encode())
    os._exit(0)


WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
FORBIDDEN = (
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec"),
    *("os.posix_spawn", "os.fork", "os.forkpty", "os.kill", "pty.spawn", "webbrowser.open"),
)
READABLE = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/usr/lib/", "/lib/", "/usr/share/zoneinfo/")


def _audit(
    event: str, args: tuple[Any, ...], folders: tuple[Path, ...], escapes: list[str], watching: list[bool]
) -> None:
    if not watching[0]:
        return
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        written = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(args[2], int) else True
        if not _inside(args[0], folders) and (written or not _of_python(args[0])):
            escapes.append(f"open {os.fsdecode(args[0])} {'to write' if written else ''}")
    elif event in FORBIDDEN:
        escapes.append(f"{event} {args!r}"[:500])
    elif event in WRITES and not all(
        _inside(name, folders) for name in args if isinstance(name, str | bytes | os.PathLike)
    ):
        escapes.append(f"{event} {args!r}"[:500])


def _inside(name: Any, folders: Sequence[Path]) -> bool:
    try:
        path = Path(os.path.realpath(os.fsdecode(name)))
    except (ValueError, OSError):
        return True  # a name that no file can have
    return any(path == folder or folder in path.parents for folder in folders)


def _of_python(name: Any) -> bool:
    """What Python reads on its own account: modules that are imported late, and the system's own files."""
    text = os.path.realpath(os.fsdecode(name))
    roots = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *filter(None, sys.path)]
    return text.startswith(READABLE) or any(_inside(name, [Path(root).resolve()]) for root in roots)


def _memory() -> tuple[int, int]:
    """Address space and resident memory in bytes; the record of the highest is started anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmSize"), _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0


def _bytes_of(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: per kind, how many files, how they ended, and how often each problem was seen."""
    header = ("kind", "files", "read", "typed error", *PROBLEMS, "longest", "most memory")
    rows = []
    for name in dict.fromkeys(outcome.kind for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.kind == name]
        ends = collections.Counter(outcome.problem or outcome.kind_of_end for outcome in own)
        read = ends.pop("read", 0)
        problems = [ends.pop(problem, 0) for problem in PROBLEMS]
        longest, most = max(o.seconds for o in own), max(o.megabytes for o in own)
        rows.append(
            (name, len(own), read, sum(ends.values()), *problems, f"{longest:.1f} s", f"{most:.0f} MB")
        )
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main(kinds: Sequence[Kind], arguments: Sequence[str] | None = None) -> int:
    """The command line of a module of this folder; exit code 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description="Tries hostile files and counts what must not happen.")
    parser.add_argument("--files", type=int, default=1000, help="files in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help=f"only this kind: {', '.join(kind.name for kind in kinds)}")
    parser.add_argument("--case", type=int, help="this case alone, read in this process, with its traceback")
    parser.add_argument("--keep", type=Path, help="a folder for the files that had a problem")
    options = parser.parse_args(arguments)
    chosen = [kind for kind in kinds if options.kind in (None, kind.name)]
    if not chosen:
        parser.error(f"no kind {options.kind}")
    torch.set_num_threads(1)  # a forked process has no worker threads
    if options.case is not None:
        with _traps() as traps, _made(chosen[0], options.case, options.seed, traps) as (path, scratch):
            print(path, _bytes_of(path), "bytes")
            os.chdir(scratch)
            print(repr(chosen[0].read(path)))
        return 0
    outcomes = run(chosen, options.files, options.seed, keep=options.keep, show=True)
    print(table(outcomes))
    return int(any(outcome.problem for outcome in outcomes))
