# SPDX-License-Identifier: Apache-2.0
"""The record of a GPU machine survives what its steps do, and its steps leave no GPU test out. No GPU here:
the steps of these tests are small programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from effort import COLLECTED
from helpers.processes import started
from helpers.waiting import PATIENCE, eventually

ROOT = Path(__file__).resolve().parent.parent
LATER = 1e9


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu_record

    return gpu_record


def program(tool: ModuleType, name: str, code: str, seconds: int = round(PATIENCE), **options):
    return tool.Step(name, (sys.executable, "-c", code), seconds, **options)


ROWS = "import sys; open(sys.argv[2], 'w').write('{\"a\": 1}\\n')"


def test_a_step_that_hangs_or_fails_costs_itself_alone(tool, monkeypatch, tmp_path):
    saved: list[list[str]] = []
    steps = (
        program(tool, "rows", ROWS, rows=True),
        tool.Step("hangs", ("sh", "-c", "echo begun; sleep 600"), 4),
        program(tool, "fails", "import sys; print('why'); sys.exit(3)"),
        program(tool, "follows", "pass", needs="fails"),
        program(tool, "hopper", "pass", hopper=True),
        program(tool, "environment", "import os; assert os.environ['A'] == '1'", environment={"A": "1"}),
        tool.Step("absent", ("no-such-program",), 5),
        tool.Step("skipped", (sys.executable, "-c", "print('3 skipped in 0.1s')", "pytest"), 20),
        tool.Step("checked", (sys.executable, "-c", "print('2 passed in 0.1s\\n== 0 errors')", "pytest"), 20),
        program(tool, "cut", ROWS.replace("1}", '1}\\n{\\"b'), rows=True),
    )
    monkeypatch.setattr(tool, "STEPS", steps)
    save = tool.save
    monkeypatch.setattr(tool, "save", lambda *given: (save(*given), saved.append(list(given[0]["steps"]))))
    target = tmp_path / "record.json"
    began = time.monotonic()
    assert tool.run({"steps": {}}, target, None, False, time.monotonic() + LATER) == 1
    assert time.monotonic() - began < PATIENCE
    found = json.loads(target.read_text())["steps"]
    assert {name: step["status"] for name, step in found.items()} == {
        "rows": "passed",
        "hangs": "timed out",
        "fails": "failed",
        "follows": "not run",
        "environment": "passed",
        "absent": "not run",
        "skipped": "failed",
        "checked": "passed",
        "cut": "passed",
    }
    assert found["cut"]["rows"][1:] == [{"unreadable": '{"b'}]
    assert found["rows"]["rows"] == [{"a": 1}] and found["fails"]["log"] == ["why"]
    assert found["hangs"]["summary"] == "begun" and found["follows"]["summary"] == "fails has not passed"
    assert saved == [list(found)[: n + 1] for n in range(len(found))], "written after each step"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json"]


def test_it_goes_on_where_it_stopped(tool, monkeypatch, tmp_path):
    count = "open({!r}, 'a').write('x')"
    files = {name: tmp_path / name for name in ("one", "two")}
    limits = {"one": 2000, "two": 4000}
    steps = tuple(program(tool, n, count.format(str(path)), limits[n]) for n, path in files.items())
    monkeypatch.setattr(tool, "STEPS", steps)
    target, machine = tmp_path / "record.json", dict.fromkeys(tool.SAME_MACHINE, "x")
    # Time for the first alone: the second could end too late.
    record = tool.begun(target, machine)
    assert tool.run(record, target, None, True, time.monotonic() + 3000) == 1
    assert files["one"].read_text() == "x" and not files["two"].exists()
    assert record["steps"]["two"]["summary"] == "no time was left; run it again"
    again = tool.begun(target, machine)
    assert again["date"] == record["date"]
    assert tool.run(again, target, None, True, time.monotonic() + LATER) == 0
    assert [path.read_text() for path in files.values()] == ["x", "x"]
    assert tool.run(again, target, ["one"], True, time.monotonic() + LATER) == 0
    assert [path.read_text() for path in files.values()] == ["xx", "x"]
    # Without time, what is known stays.
    tool.run(again, target, ["two"], True, time.monotonic())
    assert again["steps"]["two"]["status"] == "passed"
    assert tool.begun(target, {**machine, "sources": "y"})["steps"] == {}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_record_leaves_no_step_behind(tmp_path, stop):
    code = """
import signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gpu_record as tool
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, tool._stopped)
sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
tool.STEPS = (tool.Step("one", (sys.executable, "-c", sleeps), 600),)
tool.run({"steps": {}}, Path(sys.argv[2]), None, False, time.monotonic() + 1e9)
"""
    target = tmp_path / "record.json"
    log = target.with_suffix(".log")
    with started([sys.executable, "-c", code, ROOT / "tools", target]) as tool:

        def has_begun() -> bool:
            assert tool.poll() is None
            return log.exists() and log.read_text().endswith("\n")

        assert eventually(has_begun)
        step = int(log.read_text())
        tool.send_signal(stop)
        assert tool.wait(PATIENCE) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(step, 0)


def selected(test: str, step) -> bool:
    """Whether pytest takes the test: of the step's files, by the words of its -k in the test's name."""
    file, _, name = test.partition("::")
    if not any(argument.endswith(f"/{file}") for argument in step.command):
        return False
    if "-k" not in step.command:
        return True
    words = step.command[step.command.index("-k") + 1]
    found = re.sub(r"[\w-]+", lambda m: m[0] if m[0] in ("and", "or", "not") else str(m[0] in name), words)
    return bool(eval(found))  # of True, False, and, or, not


def gpu_tests(config: pytest.Config) -> list[str]:
    """Their names. Where this run has not collected all of them, a process of its own does."""
    found = config.stash[COLLECTED]
    if {item.path for item in found} >= set((ROOT / "python_tests").glob("test_*.py")):
        return [item.nodeid for item in found if item.get_closest_marker("gpu")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    listed = subprocess.run([*command, str(ROOT / "python_tests")], capture_output=True, text=True, cwd=ROOT)
    return [line for line in listed.stdout.splitlines() if "::" in line]


def test_every_gpu_test_is_in_a_step(tool, request):
    everything = gpu_tests(request.config)
    assert len(everything) > 500
    steps = [step for step in tool.STEPS if "pytest" in step.command]
    for step in steps:
        assert any(selected(test, step) for test in everything), step.name
    tested = [step for step in steps if not step.name.startswith("sanitizer")]
    assert [test for test in everything if not any(selected(test, step) for step in tested)] == []


def test_steps_are_known_programs_and_name_steps_before_them(tool):
    names = [step.name for step in tool.STEPS]
    assert len(set(names)) == len(names)
    for place, step in enumerate(tool.STEPS):
        assert not step.needs or step.needs in names[:place], step.name
        for argument in step.command:
            if argument.startswith(str(ROOT)):
                assert Path(argument).exists(), argument
    # Whoever asks for the Hopper kernel does so in its name.
    assert [s.name for s in tool.STEPS if "ARDIFF_HOPPER" in s.environment] == ["engine_graphs_sm90a"]


def test_the_digest_tells_sources_apart(tool, monkeypatch, tmp_path):
    (tmp_path / "csrc").mkdir()
    source = tmp_path / "csrc" / "a.cu"
    source.write_text("1")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    one = tool.digest_of_sources()
    (tmp_path / "csrc" / "a.o").write_text("built")
    assert tool.digest_of_sources() == one
    source.write_text("2")
    assert tool.digest_of_sources() != one


def test_without_a_gpu_and_without_an_installation_it_says_so(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu_record.py"), "--out", str(tmp_path / "r.json")],
        capture_output=True, text=True, cwd=tmp_path, env={**environment, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ran.returncode == 1 and not (tmp_path / "r.json").exists()
    assert re.search(r"torch .* sees no NVIDIA GPU, so there is nothing to record", ran.stdout)
