# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md is made by the commands in it."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest

from ardiff_engine.errors import ConfigError
from tools import evidence

COMMAND = "python -m ardiff_engine.evaluation.gaussian_bed --steps 2 --lags 0 1 --frames 3  # small"
TEXT = f"""# Title

Before.

```bash
{COMMAND}
```

<!-- made:begin -->
| old |
<!-- made:end -->

After.

```bash
python -m other --untouched
```
"""


def test_a_table_is_made_again_and_all_else_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "evidence.md"
    document.write_text(TEXT)
    assert evidence.main([], document) == 0
    made = document.read_text()
    assert "CHANGED" in capsys.readouterr().err and "| old |" not in made
    table = made.split("<!-- made:begin -->\n")[1].split("<!-- made:end -->")[0]
    assert table.startswith("\n| solver |") and table.count("\n| ddim | 2 | 3 |") == 2
    assert made.replace(table, "| old |\n") == TEXT
    assert evidence.main([], document) == 0 and document.read_text() == made
    assert "as it was" in capsys.readouterr().err


def test_a_command_that_fails_changes_nothing(tmp_path: Path) -> None:
    document = tmp_path / "evidence.md"
    document.write_text(TEXT.replace("--steps 2", "--steps 0"))
    before = document.read_text()
    with pytest.raises(ConfigError, match="ended with 2"):
        evidence.main([], document)
    assert document.read_text() == before
    assert evidence.main(["--only", "no such text"], document) == 0
    with pytest.raises(ConfigError, match="expected a module"):
        evidence.printed("python -m json.tool file")


def test_every_table_of_the_document_has_a_command_that_is_understood() -> None:
    text = evidence.DOCUMENT.read_text()
    found = evidence.commands(text)
    assert len(found) >= 6
    outside = evidence.BLOCK.sub("", text)
    assert "\n| " not in outside, "a table that no command makes"
    for command in found:
        module = shlex.split(command, comments=True)[2]
        assert callable(importlib.import_module(module).main)
