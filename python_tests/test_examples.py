# SPDX-License-Identifier: Apache-2.0
"""Every example runs, on a tiny model, and makes what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from effort import ALL
from helpers import wan_folder
from helpers.scripts import run_script

from ardiff_engine import demo, export_video, read_video

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = ["--steps", "4", "--lag", "2"]


def run(name: str, *arguments: object, folder: Path, alone: bool = ALL) -> str:
    return run_script(EXAMPLES / name, *arguments, folder=folder, alone=alone)


def test_no_example_is_left_out() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    tested.add("wan_processes.py")  # in test_ulysses.py
    assert tested == {path.name for path in EXAMPLES.glob("*.py")}


def test_generate(tiny_model: Path, tmp_path: Path) -> None:
    run("generate.py", "--model", tiny_model, "--frames", 6, *TINY, "--out", "clip.mp4", folder=tmp_path)
    assert read_video(tmp_path / "clip.mp4").shape == (6, 128, 128, 3)


def test_live_streams(tiny_model: Path, tmp_path: Path) -> None:
    output = run("live_streams.py", "--model", tiny_model, "--frames", 6, *TINY, folder=tmp_path)
    assert "stream 0: class 1 from frame" in output and "0 pages held" in output
    assert all(f"stream {number}: frame 5" in output for number in range(4))


def test_stream(tiny_model: Path, tmp_path: Path) -> None:
    output = run("stream.py", "--model", tiny_model, "--frames", 12, *TINY, "--out", "live", folder=tmp_path)
    assert len(read_video(tmp_path / "live")) == 12
    assert "frame 11 after" in output


def test_continue_video(tiny_model: Path, tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    export_video(clip, tmp_path / "clip.webp")
    arguments = [
        "clip.webp",
        "--model",
        tiny_model,
        "--given",
        3,
        "--frames",
        6,
        *TINY,
        "--out",
        "longer.webp",
    ]
    output = run("continue_video.py", *arguments, folder=tmp_path)
    result = read_video(tmp_path / "longer.webp")
    assert len(result) == 6
    np.testing.assert_array_equal(result[:3, ::8, ::8], clip[:3])
    assert "3 given frames and 3 generated" in output


def test_wan_stream(tmp_path: Path) -> None:
    model = wan_folder.write_folder(tmp_path / "model")
    options = ["--size", 32, 48, "--frames", 20, "--out", "wan"]
    output = run("wan_stream.py", model, "a cat", "blue dog", *options, folder=tmp_path)
    found = re.search(r"new prompt from frame (\d+)", output)
    assert found and 20 <= int(found[1]) <= 57
    assert read_video(tmp_path / "wan").shape == (int(found[1]) + 20, 32, 48, 3)


def test_clients_of_a_server(tiny_model: Path, tmp_path: Path) -> None:
    server = pytest.importorskip("helpers.server", reason="needs the extra serve", exc_type=ImportError)
    pytest.importorskip("openai")
    with server.running(tiny_model, tmp_path / "data") as own:
        options = ["--seconds", 1, "--out", "made.mp4"]
        output = run("openai_client.py", "--url", f"{own.url}/v1", *options, folder=tmp_path)
        assert "made.mp4: 1 s of 256x256" in output
        assert read_video(tmp_path / "made.mp4").shape == (8, 256, 256, 3)
        options = ["--frames", 24, "--steer", '{"class": 1}']
        output = run("realtime_client.py", "--url", own.socket, *options, folder=tmp_path)
        held = re.search(r"it will hold from piece (\d+) on", output)
        assert held and f"frame {held[1]} is the first to show 'steer'" in output
        assert read_video(tmp_path / "live.mp4").shape == (24, 256, 256, 3)


def test_train_on_videos(tmp_path: Path) -> None:
    output = run("train_on_videos.py", "--steps", 2, "--batch", 2, "--out", "own", folder=tmp_path)
    assert "model: own/model" in output
    assert read_video(tmp_path / "own" / "sample.webp").shape == (16, 256, 256, 3)


def test_one_op(tmp_path: Path) -> None:
    output = run("one_op.py", folder=tmp_path, alone=True)
    assert re.search(r"difference to dense attention: \d\.\de-0[67]", output)


def test_the_demo_writes_everything_it_names(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = demo.run(tmp_path / "demo", model=str(tiny_model), frames=12, given=4, steps=4, lag=2)
    printed = capsys.readouterr().out
    for path in (files.video, files.animation, files.continuation, files.plan, files.sheet):
        assert path.stat().st_size > 0
        assert str(path) in printed
    assert len(read_video(files.video)) == len(read_video(files.continuation)) == 12


def test_the_demo_answers_mistakes_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--model", "no-such-model", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("python -m ardiff_engine.demo: ")
    assert demo.main(["--frames", "8", "--model", "no-such-model", "--out", str(tmp_path / "new")]) == 2
    assert "frames: got 8" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
