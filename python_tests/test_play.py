# SPDX-License-Identifier: Apache-2.0
"""`ardiff play`: what is drawn, which keys are read, what they do, in a file and in a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import started
from helpers.waiting import PATIENCE
from test_steered import write_model

from ardiff_engine import cli, read_video
from ardiff_engine.errors import ConfigError
from ardiff_engine.play.keyboard import Script, keys_in
from ardiff_engine.play.screen import drawn
from ardiff_engine.play.worlds import CAPTIONS, Digits, Shapes, open_world

CELL = re.compile(r"(?:\x1b\[38;2;(\d+);(\d+);(\d+)m\x1b\[48;2;(\d+);(\d+);(\d+)m)?▀")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("steered"))


def seen(text: str) -> np.ndarray:
    """The picture that a terminal shows."""
    rows = []
    for line in text.split("\r\n")[:-1]:
        cells, color = [], ()
        for cell in CELL.finditer(line):
            color = tuple(map(int, cell.groups())) if cell[1] else color
            cells.append(color)
        upper_lower = np.array(cells, dtype=np.uint8).reshape(-1, 2, 3)
        rows += [upper_lower[:, 0], upper_lower[:, 1]]
    return np.stack(rows)


def test_a_picture_is_drawn_pixel_by_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image[2:] = 7  # of one colour, which is named once
    text = drawn(image, 20, 12, "hello")
    assert np.array_equal(seen(text), image.repeat(2, 0).repeat(2, 1)), "twice as large fits, three times not"
    assert text.count("38;2") < 6 * 8 and "hello" in text
    assert np.array_equal(seen(drawn(image, 5, 4, "hello")), image[:4, :5]), "what does not fit is cut"
    assert np.array_equal(seen(drawn(image[:5], 8, 12, ""))[:5], image[:5])


def test_keys_as_terminals_send_them() -> None:
    sent = "\x1b[Dq\x1bOA\x1b[1;5C\x1b[5~7\x1b\x1b[B"
    assert keys_in(sent) == ["left", "q", "up", "right", "7", "down"]
    assert keys_in("\x1b[") == []
    script = Script("l.7")
    assert [script.pressed(frame) for frame in range(4)] == [["left"], [], ["7"], []]
    with pytest.raises(ConfigError, match="keys"):
        Script("\x1b[D")


def test_arrows_push_for_two_blocks_and_digits_choose_captions(folder: Path) -> None:
    world = open_world(str(folder), prompt=None, steps=1, seed=0, device="cpu")
    assert isinstance(world, Shapes)
    world.press("right")
    assert [world._held(frame) for frame in range(6)] == [2, 2, 2, 2, 0, 0]
    world.press("3")
    assert CAPTIONS[2] in world.line
    for key in ("0", "x", "", "none"):
        world.press(key)
    assert CAPTIONS[2] in world.line
    assert [frame.index for frame, _ in zip(world.frames(), range(5), strict=False)] == list(range(5))


def test_a_file_shows_what_keys_did(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def played(name: str, *more: str) -> np.ndarray:
        out = tmp_path / f"{name}.webp"
        command = ["play", "--model", str(folder), "--seed", "1", "--steps", "2", "--frames", "12"]
        assert cli.main([*command, "--out", str(out), *more]) == 0
        return read_video(out)

    plain, pressed = played("plain"), played("pressed", "--keys", "...r")
    assert plain.shape == pressed.shape == (12, 128, 128, 3)
    assert np.array_equal(plain[:4], pressed[:4]) and not np.array_equal(plain[4:], pressed[4:])
    assert len(played("short", "--keys", "..q")) == 3
    assert not np.array_equal(played("other", "--prompt", "a blue square moves up"), plain)
    assert "12 frames" in capsys.readouterr().out


def test_the_bundled_digits_can_be_played(tmp_path: Path) -> None:
    world = open_world("moving-digits", prompt=None, steps=5, seed=0, device="cpu")
    assert isinstance(world, Digits)
    shown = []
    for frame in world.frames():
        shown.append(np.asarray(frame.image))
        if len(shown) == 2:
            world.press("7")
        if len(shown) == 4:
            world.press(" ")
        if len(shown) == 6:
            break
    assert "class 7" in world.line and len({picture.tobytes() for picture in shown}) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "x.webp"],
        ["--frames", "0", "--out", "x.webp"],
        ["--frames", "4", "--out", "x.xyz"],
        ["--frames", "4", "--out", "x.webp", "--prompt", "a red circle"],
        ["--frames", "4", "--out", "x.webp", "--size", "32x32"],
        ["--frames", "4", "--out", "x.webp", "--model", "/nowhere"],
        ["--frames", "4", "--out", "x.webp", "--steps", "0"],
        ["--frames", "4", "--out", "x.webp", "--keys", "\x1b"],
    ],
)
def test_what_cannot_be_played(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["play", *arguments]) == 2
    assert "ardiff" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_in_a_terminal(folder: Path) -> None:
    """Draws, takes keys, quits by q, and leaves the terminal as it was."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    before = termios.tcgetattr(inner)
    command = [sys.executable, "-m", "ardiff_engine.cli", "play", "--model", str(folder), "--steps", "1"]
    text, sent, until = "", 0, time.monotonic() + PATIENCE
    with started(command, stdin=inner, stdout=inner, stderr=inner) as process:
        while process.poll() is None and time.monotonic() < until:
            if select.select([outer], [], [], 0.1)[0]:
                text += os.read(outer, 1 << 16).decode(errors="ignore")
            if sent == 0 and "▀" in text:
                sent = os.write(outer, b"\x1b[C2")
            if sent == 4 and CAPTIONS[1] in text:
                sent += os.write(outer, b"q")
    while select.select([outer], [], [], 0.1)[0]:
        text += os.read(outer, 1 << 16).decode(errors="ignore")
    assert process.returncode == 0 and CAPTIONS[0] in text and "frames" in text
    assert text.count("\x1b[?25h") == 1, "the cursor is shown again"
    assert termios.tcgetattr(inner) == before
    os.close(outer)
    os.close(inner)
