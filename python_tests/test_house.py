# SPDX-License-Identifier: Apache-2.0
"""The order of the house: imports point one way, rooms stay small, and the engine knows no network."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from effort import ALL
from helpers.waiting import PATIENCE

PACKAGE = Path(__file__).parents[1] / "ardiff_engine"
MOST_LINES = 400
MOST_ENGINE_FILES = 26


def modules() -> dict[str, Path]:
    files = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in files}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """Everything that a file names in an import, wherever: also within functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
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


# What others have made is there before: each process would take a second to import it.
FIRST = """
import contextlib, os, sys
import numpy, torch
for name in ("PIL.Image", "av", "fastapi", "uvicorn", "prometheus_client", "safetensors.torch", "ray"):
    with contextlib.suppress(ImportError):
        __import__(name)
for names in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        for name in names.split(","):
            try:
                __import__(name)
            except BaseException as error:
                print(name, repr(error)[:300], flush=True)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(names, "ends with", status, flush=True)
"""


def first_imports(names: list[str]) -> str:
    """What is said when each of `names`, or a list with commas, is the first import of a process."""
    done = subprocess.run([sys.executable, "-c", FIRST, *names], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_every_part_can_be_the_first_import() -> None:
    """Before a module comes its package, and no circle goes beyond one package (the test below): where each
    package can be the first import, each module can. They follow one another in one more process. The quick
    tests try the packages of the first floor."""
    packages = sorted(name for name, path in parts().items() if path.name == "__init__.py")
    packages = [name for name in packages if ALL or name.count(".") == 1]
    told = first_imports([*packages, ",".join(sorted(parts())), "json,no_such_module"])
    assert told.startswith("no_such_module ModuleNotFoundError"), told
    assert len(told.splitlines()) == 1, told


def parts() -> dict[str, Path]:
    """Modules and packages, without what runs when it is imported."""
    packages = {path.parent: path for path in PACKAGE.rglob("__init__.py")}
    found = {".".join(folder.relative_to(PACKAGE.parent).parts): path for folder, path in packages.items()}
    return found | {name: path for name, path in modules().items() if path.name != "__main__.py"}


def needs(known: dict[str, Path]) -> dict[str, set[str]]:
    """What is imported before a part can be used: its packages, and what its top level names."""
    trees = {name: parsed(path) for name, path in known.items()}
    late = {name: homes(tree) for name, tree in trees.items() if known[name].name == "__init__.py"}
    graph = {}
    for name, tree in trees.items():
        found = top_level(tree.body)
        # A name that is no part comes from a package, perhaps only now: lazy.py.
        found |= {home for full in found - known.keys() for home in late.get(full.rpartition(".")[0], ())}
        found |= {name}
        graph[name] = (found | {parent for own in found for parent in parents(own)}) & known.keys()
    return graph


def homes(package: ast.Module) -> set[Any]:
    """What a package names in strings: also modules."""
    return {node.value for node in ast.walk(package) if isinstance(node, ast.Constant)}


def parents(name: str) -> set[str]:
    words = name.split(".")
    return {".".join(words[:count]) for count in range(1, len(words))}


def top_level(body: list[ast.stmt]) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found |= top_level(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody", "handlers"):
                found |= top_level(getattr(node, field, []))
    return found


def beyond_a_package(graph: dict[str, set[str]]) -> list[set[str]]:
    """Parts that import each other, whereof none is a package that holds the others."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen, ahead = {name}, [name]
        while ahead:
            more = graph[ahead.pop()] - seen
            seen |= more
            ahead += more
        reached[name] = seen
    rings = {frozenset(other for other in seen if name in reached[other]) for name, seen in reached.items()}
    return [
        set(ring)
        for ring in rings
        if not any(all(f"{part}.".startswith(f"{top}.") for part in ring) for top in ring)
    ]


def test_circles_stay_in_one_package() -> None:
    graph = needs(parts())
    assert "ardiff_engine.pipeline.pipeline" in graph["ardiff_engine.demo"], "a name that comes late"
    assert sum(map(len, graph.values())) > 1000, "the walk has missed the imports"
    assert beyond_a_package(graph) == []


def test_a_circle_between_packages_would_be_found() -> None:
    within = {"p": {"p.a"}, "p.a": {"p", "p.b"}, "p.b": {"p"}, "q": {"p"}}
    assert beyond_a_package(within) == []
    assert beyond_a_package(within | {"p.b": {"p", "q"}}) == [{"p", "p.a", "p.b", "q"}]


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


TESTS = [path for folder in ("python_tests", "tools") for path in (PACKAGE.parent / folder).rglob("*.py")]


def literal(node: ast.expr) -> float | None:
    known = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return float(node.value) if known else None  # type: ignore[attr-defined]


WAITS = ("wait", "wait_for", "join", "result", "acquire", "recv", "timeout")
A_LOOK = 1.0
"""Seconds below which nobody waits for something: it is a look that nothing has happened."""


def impatient(tree: ast.Module) -> list[int]:
    """Lines that wait, but not for PATIENCE: `timeout=30`, `time.monotonic() + 30`, `process.wait(30)`."""
    found = []
    for node in ast.walk(tree):
        wait: float | None = None
        if isinstance(node, ast.keyword) and node.arg in ("timeout", "open_timeout", "within"):
            wait = literal(node.value)
        elif isinstance(node, ast.BinOp) and ast.unparse(node.left) == "time.monotonic()":
            wait = literal(node.right) if isinstance(node.op, ast.Add) else None
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in WAITS and node.args:
            wait = literal(node.args[-1])
            wait = None if wait is not None and wait < A_LOOK else wait
        if wait is not None and wait < PATIENCE:
            found.append(node.value.lineno if isinstance(node, ast.keyword) else node.lineno)  # type: ignore[attr-defined]
    return found


def shared_draws(tree: ast.Module) -> list[str]:
    """Random numbers that the tests of a file share: what one of them draws depends on those before it."""
    made = ("default_rng", "Random", "RandomState", "Generator")
    return [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).rpartition(".")[2] in made
    ]


def test_processes_of_tests_are_waited_for() -> None:
    """helpers/ start them so that none outlives its test, however it ends."""
    for path in (path for path in TESTS if path.parent.name == "python_tests"):
        calls = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
        assert "subprocess.Popen" not in calls, path


def test_tests_are_patient_and_draw_alone() -> None:
    trees = {path: parsed(path) for path in TESTS}
    assert len(trees) > 200
    assert not {path.name: lines for path, tree in trees.items() if (lines := impatient(tree))}
    assert not {path.name: draws for path, tree in trees.items() if (draws := shared_draws(tree))}


def test_a_hurried_test_would_be_found() -> None:
    assert impatient(ast.parse("get(url, timeout=30)")) == [1]
    assert impatient(ast.parse("\nuntil = time.monotonic() + 10")) == [2]
    assert impatient(ast.parse("asyncio.wait_for(asyncio.gather(*all), 60)")) == [1]
    assert impatient(ast.parse("get(url, timeout=PATIENCE); time.monotonic() + 300; thread.join(0.05)")) == []
    assert len(shared_draws(ast.parse("DICE = np.random.default_rng(3)"))) == 1
