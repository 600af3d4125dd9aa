# SPDX-License-Identifier: Apache-2.0
"""Commands as processes: signals, a reader that leaves, a full disk behind the output."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import ROOT, run
from helpers.processes import started
from helpers.waiting import PATIENCE, eventually

from ardiff_engine import Pipeline, read_video


def start(*arguments: object, **options: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A command in a process of its own."""
    return started(
        [sys.executable, "-m", "ardiff_engine", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_endless_stream_and_keeps_its_frames(
    number: signal.Signals, code: int, tiny_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "live.mp4"
    sampling = ["--model", tiny_model, "--steps", 4, "--lag", 2]
    with start("stream", *sampling, "--out", target, stdout=subprocess.PIPE) as process:

        def has_begun() -> bool:
            assert process.poll() is None, process.communicate()
            return target.exists() and target.stat().st_size >= 4000

        assert eventually(has_begun)
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    count = int(re.search(r"live.mp4: (\d+) frames", output)[1])  # type: ignore[index]
    assert len(read_video(target)) == count > 2


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("info",), ("info", "--json")])
def test_a_reader_that_leaves_and_a_full_disk_behind_the_output(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with start(*arguments, stdout=writer) as process:
        os.close(writer)
        assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode == 1
    with open("/dev/full", "w") as full, start(*arguments, stdout=full) as process:
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1 and errors == "ardiff: No space left on device\n"


def test_ctrl_c_during_a_finite_job_is_exit_code_130(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> Iterator[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", interrupted)
    assert run("stream", "--model", tiny_model, "--frames", 4, "--out", tmp_path / "x") == 130
    assert "stopped" in capsys.readouterr().err
