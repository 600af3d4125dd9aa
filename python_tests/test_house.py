# SPDX-License-Identifier: Apache-2.0
"""The order of the house: imports point one way, rooms stay small, and the engine knows no network."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from effort import ALL

PACKAGE = Path(__file__).parents[1] / "ardiff_engine"
MOST_LINES = 400
MOST_ENGINE_FILES = 26


def modules() -> dict[str, Path]:
    files = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files}


def imported(path: Path) -> set[str]:
    """Everything that a file names in an import, wherever: also within functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return None


def test_no_import_leads_back() -> None:
    known = modules()
    graph = {name: (imported(path) & known.keys()) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 500, "the walk has missed the imports"
    assert circle(graph) is None


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None


ALONE = """
import os, sys
import numpy, torch
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
        except BaseException as error:
            print(name, repr(error)[:300], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_every_part_can_be_the_first_import() -> None:
    """What a package's `__init__` imports counts too, which the walk above does not see."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    if not ALL:
        files = [path for path in files if path.name == "__init__.py"]
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files}
    command = [sys.executable, "-c", ALONE, *sorted(name.removesuffix(".__init__") for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("folder", ["engine", "plan", "memory"])
def test_no_concrete_network_below_the_pipeline(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in imported(path):
            assert not name.startswith(
                tuple(f"ardiff_engine.models.{kind}" for kind in ("ar_diffusion", "titok", "wan"))
            )


def test_sizes() -> None:
    assert (
        len([path for path in (PACKAGE / "engine").glob("*.py") if path.name != "__init__.py"])
        <= MOST_ENGINE_FILES
    )
    long = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}
