# SPDX-License-Identifier: Apache-2.0
"""The fuzzer notices what it is there to notice, and finds nothing in a few hundred hostile files."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from effort import ALL
from helpers.waiting import PATIENCE

from ardiff_engine.errors import CheckpointError, DataError

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.fuzz import runner
from tools.fuzz.mutate import mutated
from tools.fuzz.traps import Traps


def make(rng: random.Random, folder: Path, traps: Traps) -> Path:
    path = folder / "given.txt"
    # What a hostile file would name: a file that nobody may open, and a port.
    path.write_text(f"{traps.files[0]}\n{traps.port}\n")
    return path


def canary_by_python(path: Path) -> None:
    open(path.read_text().split()[0]).close()


def canary_by_the_system(path: Path) -> None:
    import ctypes

    ctypes.CDLL(None).open(path.read_text().split()[0].encode(), os.O_RDONLY)


def a_port(path: Path) -> None:
    socket.create_connection(("127.0.0.1", int(path.read_text().split()[1]))).close()


def a_program(path: Path) -> None:
    subprocess.run(["gs", "--version"], check=False)


def a_program_by_the_system(path: Path) -> None:
    import ctypes

    ctypes.CDLL(None).system(b"gs --version")


def a_write_elsewhere(path: Path) -> None:
    (path.parents[1] / "elsewhere").write_text("x")


def a_loop(path: Path) -> None:
    while True:
        pass


def much_memory(path: Path) -> None:
    b"x" * (1200 << 20)


def typed(path: Path) -> None:
    raise DataError(f"{path}: not what it should be")


def unnamed(path: Path) -> None:
    raise CheckpointError("something is wrong somewhere")


def well_behaved(path: Path) -> None:
    path.read_text()
    Path("scratch").write_text("x")


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (canary_by_python, "escape"),
        (canary_by_the_system, "escape"),
        (a_port, "escape"),
        (a_program, "escape"),
        (a_program_by_the_system, "escape"),
        (a_write_elsewhere, "escape"),
        (lambda _: os.abort(), "crash"),
        (lambda _: os._exit(0), "crash"),
        (a_loop, "hang"),
        (much_memory, "memory"),
        (lambda _: {}["x"], "untyped"),
        (lambda _: sys.exit(0), "untyped"),
        (unnamed, "unnamed"),
        (typed, ""),
        (well_behaved, ""),
    ],
)
def test_the_runner_notices(
    read: Callable[[Path], object], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CPU_SECONDS", 1 if read is a_loop else int(PATIENCE))
    outcome = runner.attempt(runner.Kind("given", make, read), 0, 0, tmp_path)
    assert outcome.problem == problem, outcome
    assert bool(list(tmp_path.iterdir())) == bool(problem)


def test_the_same_seed_makes_the_same_bytes() -> None:
    data = bytes(range(256)) * 4
    made = [[mutated(data, random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 40


def test_hostile_files_of_every_kind() -> None:
    """In a process of its own, whose forks must not be those of pytest."""
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-m", "tools.fuzz.files", "--files", str(15_000 if ALL else 130), "--seed", "5"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| toml-TrainConfig |" in result.stdout
