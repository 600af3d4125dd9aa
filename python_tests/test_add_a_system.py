# SPDX-License-Identifier: Apache-2.0
"""docs/add_a_system.md does what it says, and docs/systems.md is what the systems are."""

import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ardiff_engine import systems
from ardiff_engine.errors import ConfigError
from ardiff_engine.systems import __main__ as command
from ardiff_engine.systems import registry, specs
from ardiff_engine.systems.document import page

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The examples of the page; first and last are modules of the package while the test runs."""
    first, *others, last = re.findall(
        r"```python\n(.*?)```", (DOCS / "add_a_system.md").read_text(), re.DOTALL
    )
    for package, code in ((systems, first), (specs, last)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "two_step_forcing.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.chdir(tmp_path)
    registry._systems.cache_clear()
    yield others
    registry._systems.cache_clear()


def test_a_file_is_a_system(examples: list[str], tmp_path: Path) -> None:
    assert "two-step-forcing" in systems.names()
    names: dict[str, Any] = {}
    exec(compile(examples[0], "add_a_system.md", "exec"), names)
    trace = names["trace"]
    # Eight blocks of two steps and a store; the last one sees its sink and nine frames.
    assert trace.fed.shape == (24, 24) and (tmp_path / "two-step-forcing.png").exists()
    assert np.flatnonzero(trace.visible[-1, 23]).tolist() == [*range(6), *range(15, 24)]
    assert names["request"].memory == names["system"].memory
    entry = {"system": "two-step-forcing", "new_frames": 6, "block": 2, "window": 5, "timesteps": [900, 400]}
    made = systems.from_spec(entry).trace()
    assert made.fed.shape == (9, 6)
    np.testing.assert_array_equal(np.unique(made.timestep[made.fed]), [0, 400, 900])


def test_without_the_file_there_is_no_system() -> None:
    assert "two-step-forcing" not in systems.names()


def test_a_system_that_no_entry_describes(examples: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "__path__", specs.__path__[:-1])
    sys.modules.pop(f"{specs.__name__}.two_step_forcing", None)
    with pytest.raises(ConfigError, match="entry"):
        systems.from_spec({"system": "two-step-forcing"})


def test_a_system_is_a_few_lines() -> None:
    lines = [len(path.read_text().splitlines()) for path in Path(systems.__file__).parent.glob("*.py")]
    assert statistics.median(lines) <= 25


def test_the_page_of_all_systems_is_up_to_date() -> None:
    text = page(map(systems.get, systems.names()))
    assert (DOCS / "systems.md").read_text() == text, "run python -m ardiff_engine.systems --docs docs"
    for picture in re.findall(r"\]\((images/.*?)\)", text):
        assert (DOCS / picture).exists(), picture


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    assert capsys.readouterr().out.count("\n") == len(systems.names())
    assert command.main(["longlive", "--frames", "9", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "longlive.png").exists() and "9 frames, 15 calls" in capsys.readouterr().out
    assert command.main(["longlove"]) == 2
    assert command.main(["longlive", "--frames", "10"]) == 2
    assert command.main(["--docs", str(tmp_path)]) == 0
    assert len(list((tmp_path / "images" / "systems").iterdir())) == len(systems.names())
