# SPDX-License-Identifier: Apache-2.0
"""Writes the record of a GPU machine: benchmarks/results/<gpu>.json.

    python tools/gpu_record.py                       # everything, in order, until the time is over
    python tools/gpu_record.py --only attention_sm80 # one step, again

Steps, the most telling first: rates of the machine, tests, speed, compute-sanitizer. Each is a process of its
own with a time limit, and the record is written after each: a hang, a crash or an interrupt costs that step
alone. Started again on the same sources, it goes on with the steps that have not passed. Exit code 0 only if
every step has. `make gpu` runs it. It needs no installation, only the native module: setup.py build_ext
--inplace.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# What must not change between two calls that fill one record.
SAME_MACHINE = ("sources", "gpu", "driver", "torch")
HOPPER = {"ARDIFF_HOPPER": "1"}
SM80 = "test_cuda_frame_attention.py test_cuda_attention_schedule.py"
SM90 = "test_cuda_frame_attention_sm90.py"
CHECKS = ("memcheck", "synccheck", "racecheck")
END_SECONDS = 30.0
_PASSED = re.compile(r"\b[1-9]\d* passed\b")  # what pytest says; compute-sanitizer has the last word after it
_OTHER_OPS = ("backend", "bias_gelu", "modulate", "noise", "norm_rope_pages", "pages", "pool_pages")
TRITON = " ".join(f"test_triton_{op}.py" for op in _OTHER_OPS)


@dataclass(frozen=True, slots=True)
class Step:
    """seconds: the most it may take. needs: a step that must have passed; hopper: on such a GPU alone.

    rows: the command appends lines of JSON to the file after `--json`.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""
    hopper: bool = False
    rows: bool = False


def tests(name: str, files: str, seconds: int, select: str = "", **options: Any) -> Step:
    """The tests marked `gpu` of these files."""
    paths = tuple(str(ROOT / "python_tests" / file) for file in files.split())
    picked = ("-k", select) if select else ()
    # Who hangs is named in the log before it is killed.
    reports = ("-v", "-m", "gpu", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={seconds - 10}")
    return Step(name, (sys.executable, "-m", "pytest", *reports, *picked, *paths), seconds, **options)


def speed(name: str, file: str, seconds: int, *arguments: str, **options: Any) -> Step:
    script = str(ROOT / "benchmarks" / "gpu" / file)
    return Step(name, (sys.executable, script, *arguments), seconds, rows=True, **options)


def sanitized(check: str, files: str, seconds: int, **options: Any) -> Step:
    """The smallest shapes of every kernel. Without PyTorch's caches: what lies beyond a tensor is then not
    the next tensor."""
    ops = "modulate and 10 or norm_rope and 10 or gate and 10 or add_noise or solver_step or philox"
    ops += " or timesteps or pages or bad_"
    attention = "page_rows and 16 or page_rows and 112 or parts_are_merged or out_of_range or causal"
    small = f"not nvrtc and not large and not any_order and ({ops} or {attention})"
    name = f"{check}_sm90" if SM90 in files else check
    step = tests(f"sanitizer_{name}", files, seconds, small)
    tool = ("compute-sanitizer", "--tool", check, "--error-exitcode", "1", "--target-processes", "all")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Step(step.name, (*tool, *step.command), seconds, environment, **options)


STEPS = (
    speed("rates", "timing.py", 60),
    tests("tests_ops", "test_cuda_ops.py test_pool_pages.py", 120, "not nvrtc"),
    tests("tests_attention_sm80", SM80, 120, "not nvrtc and not large"),
    speed("attention_sm80", "attention.py", 60, "--variant", "sm_80"),
    tests("tests_sm90_first", SM90, 40, "page_rows and gpu-112 and not nvrtc", hopper=True),
    tests("tests_sm90", SM90, 120, "not nvrtc and not large", needs="tests_sm90_first", hopper=True),
    speed(
        "attention_sm90a", "attention.py", 60, "--variant", "sm_90a",
        needs="tests_sm90_first", hopper=True,
    ),
    speed("memory_bound", "memory_bound.py", 60, environment={"ARDIFF_BACKEND": "cuda"}),
    tests("tests_engine", "test_cuda_pass.py", 90),
    speed("engine_graphs", "engine.py", 90, "--variant", "graphs"),
    speed("engine_eager", "engine.py", 90, "--variant", "eager"),
    speed(
        "engine_graphs_sm90a", "engine.py", 90, "--variant", "graphs",
        environment=HOPPER, needs="tests_sm90", hopper=True,
    ),
    speed("wan_graphs", "wan.py", 240, "--variant", "graphs", needs="tests_engine"),
    speed("wan_eager", "wan.py", 240, "--variant", "eager", needs="tests_engine"),
    tests("tests_large", SM80, 120, "large"),
    tests("tests_sm90_large", SM90, 120, "large", needs="tests_sm90", hopper=True),
    tests("tests_triton_attention", "test_triton_frame_attention.py", 240),
    speed("training", "training.py", 180),
    tests("tests_triton", TRITON, 300),
    tests("tests_nvrtc", f"test_cuda_ops.py test_pool_pages.py {SM80}", 240, "nvrtc"),
    tests("tests_nvrtc_sm90", SM90, 180, "nvrtc", needs="tests_sm90", hopper=True),
    *(sanitized(check, f"test_cuda_ops.py test_pool_pages.py {SM80}", 240) for check in CHECKS),
    *(sanitized(check, SM90, 240, needs="tests_sm90", hopper=True) for check in CHECKS),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps, again")
    parser.add_argument("--seconds", type=int, default=560, help="begin no step that could end later")
    options = parser.parse_args()
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _stopped)  # as Ctrl-C does: no step may run on alone
    import torch  # after the options: it takes seconds

    if not torch.cuda.is_available():
        print(f"gpu_record: torch {torch.__version__} sees no NVIDIA GPU, so there is nothing to record")
        return 1
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    target = options.out or RESULTS / f"{name}.json"
    record = begun(target, machine(torch))
    hopper = torch.cuda.get_device_capability()[0] == 9
    return run(record, target, options.only, hopper, time.monotonic() + options.seconds)


def _stopped(number: int, _: object) -> None:
    sys.exit(128 + number)


def run(record: dict[str, Any], target: Path, only: list[str] | None, hopper: bool, deadline: float) -> int:
    """Takes the steps; 1 unless all of this GPU's have passed."""
    results = record["steps"]
    for step in STEPS:
        if (step.name not in only) if only else results.get(step.name, {}).get("status") == "passed":
            continue
        if step.hopper and not hopper:
            continue
        if step.needs and results.get(step.needs, {}).get("status") != "passed":
            # What came of it before, if it was taken, stays.
            results.setdefault(step.name, {"status": "not run", "summary": f"{step.needs} has not passed"})
        elif time.monotonic() + step.seconds > deadline:
            results.setdefault(step.name, {"status": "not run", "summary": "no time was left; run it again"})
        else:
            print(f"gpu_record: {step.name}", flush=True)
            results[step.name] = taken(step, target.with_suffix(".rows"), target.with_suffix(".log"))
        print(f"gpu_record: {step.name}: {results[step.name]['status']}", flush=True)
        save(record, target)
    mine = [step.name for step in STEPS if hopper or not step.hopper]
    missing = [name for name in mine if results.get(name, {}).get("status") != "passed"]
    print(f"gpu_record: {target}; not passed: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


def taken(step: Step, rows: Path, log: Path) -> dict[str, Any]:
    """What came of it. Whoever hangs is killed with all that it has started."""
    rows.unlink(missing_ok=True)
    command = [*step.command, *(("--json", str(rows)) if step.rows else ())]
    if shutil.which(command[0]) is None:
        return {"status": "not run", "summary": f"there is no {command[0]} here"}
    # The kernels that run must be those of the step, and not depend on who runs it.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ARDIFF_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **step.environment}
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Whatever it has started goes with it, and its memory of the GPU before the next step comes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
    lines = log.read_text(errors="replace").strip().splitlines()
    status = "timed out" if code is None else "passed" if code == 0 else "failed"
    if status == "passed" and "pytest" in step.command and not any(_PASSED.search(line) for line in lines):
        status = "failed"  # all skipped: nothing is known
    result: dict[str, Any] = {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "summary": lines[-1] if lines else "",
    }
    if status != "passed":
        result["log"] = lines[-60:]
        print("\n".join(lines[-60:]), flush=True)
    if rows.exists():
        result["rows"] = list(parsed(rows.read_text().splitlines()))
        rows.unlink()
    log.unlink()
    return result


def parsed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # its writer was killed
            yield {"unreadable": line}


def begun(target: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The record to go on with: that of the same sources on the same machine, or a new one."""
    if target.exists():
        before: dict[str, Any] = json.loads(target.read_text())
        if all(before.get(key) == machine[key] for key in SAME_MACHINE):
            return before
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, **machine, "steps": {}}


def machine(torch: Any) -> dict[str, Any]:
    return {
        "commit": printed_by("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "sources": digest_of_sources(),
        "changed_files": printed_by("git", "-C", str(ROOT), "status", "--porcelain", "-uno"),
        "gpu": torch.cuda.get_device_name(),
        "driver": printed_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
    }


def digest_of_sources() -> str:
    """Of everything that a step runs: a copy of the tree may have no history."""
    digest = hashlib.sha256()
    for folder in ("", "ardiff_engine", "csrc", "python_tests", "benchmarks"):
        for path in sorted((ROOT / folder).glob("**/*" if folder else "*")):
            if path.suffix in (".py", ".toml", ".txt", ".cu", ".cuh", ".h", ".cpp"):
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def save(record: dict[str, Any], target: Path) -> None:
    """All of it or nothing: whoever is killed here leaves the one before."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(target)


def printed_by(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
