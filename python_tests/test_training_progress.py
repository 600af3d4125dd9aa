# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it goes on: a bar on a terminal, lines in a file, validations in both."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.small_training import write_config

from ardiff_engine import cli
from ardiff_engine.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_whole_lines_and_validations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was one line without an end, and no validation was seen but in the JSON of the log."""
    settings = ["--set=log.keep_best=true", "--set=run.validate_every=2"]
    assert cli.main(["train", str(write_config(tmp_path, steps=4)), *settings]) == 0
    out, told = capsys.readouterr()
    assert out.splitlines()[-1] == f"with the lowest validation_loss: {tmp_path / 'run' / 'best'}"
    assert "\r" not in told
    first, *_, last = told.splitlines()
    assert first.startswith("step 1 of 4: loss ") and first.endswith(" left")
    for step in (2, 4):
        assert any(line.startswith(f"step {step} of 4: validation_loss ") for line in told.splitlines())
    assert "_at_" not in told and "kept in best/" in told and last.startswith("step 4 of 4")


def test_lines_are_apart_and_other_processes_say_nothing() -> None:
    for shown, apart, expected in ((True, 0.0, 3), (True, 1e9, 1), (False, 0.0, 0)):
        file = io.StringIO()
        with Progress(3, 0, shown=shown, file=file, apart=apart) as progress:
            for _ in range(3):
                progress.step()
                progress.losses({"loss": 0.5, "teacher_loss": 0.5, "gradient_norm": 2.0, "lr": 0.1})
            progress.validation({"loss": 0.25, "loss_at_0.1": 0.5}, kept=False)
        lines = file.getvalue().splitlines()
        assert len(lines) == expected + shown
        assert all("loss 0.5, 0" in line and "teacher" not in line for line in lines[:-1])
        assert lines[-1:] == ["step 3 of 3: validation_loss 0.25"] * shown


def test_a_terminal_gets_a_bar_and_validations_above_it() -> None:
    file = Terminal()
    with Progress(4, 2, shown=True, file=file) as progress:
        progress.step()
        progress.losses({"loss": 0.5})
        progress.validation({"psnr": 21.5}, kept=True)
    told = file.getvalue()
    assert "training:  75%" in told and "3/4" in told and "loss 0.5" in told
    assert "\rstep 3 of 4: validation_psnr 21.5, the lowest loss so far: kept in best/\n" in told
