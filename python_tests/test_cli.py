# SPDX-License-Identifier: Apache-2.0
# SPDX-License-Identifier: Apache-2.0
"""The command line does what the functions do, and answers mistakes with one message and exit code 2."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import re
import shlex
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import ROOT, run
from helpers.waiting import PATIENCE
from safetensors.torch import load_file
from tqdm import tqdm

from ardiff_engine import Pipeline, cli, command_end, commands, export_video, read_video
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.errors import ArdiffError, ConfigError, MediaError
from ardiff_engine.media import open_video
from ardiff_engine.plan import lag

COMMANDS = (
    "generate",
    "stream",
    "play",
    "serve",
    "train-vae",
    "encode",
    "train",
    "convert",
    "bench",
    "report",
    "info",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  ardiff {command}" in text


def test_the_examples_of_the_help_parse() -> None:
    parser = cli.build_parser()
    found = 0
    for command in COMMANDS:
        text = parser._subparsers._group_actions[0].choices[command].format_help()  # type: ignore[union-attr,index,call-overload]
        for line in text.partition("examples:\n")[2].splitlines():
            words = shlex.split(line, comments=True)
            assert parser.parse_args(words[1:]).debug is False
            found += 1
    assert found >= 2 * len(COMMANDS) - 2


def test_the_manual_names_every_command_and_option() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text()
    parser = cli.build_parser()
    for command in COMMANDS:
        assert f"## ardiff {command}" in manual
        text = parser._subparsers._group_actions[0].choices[command].format_help()  # type: ignore[union-attr,index,call-overload]
        for option in re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE):
            assert f"`{option}" in manual, f"{command} {option}"


def test_generate_writes_the_video_that_the_pipeline_makes(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["--model", tiny_model, "--frames", 6, "--steps", 4, "--lag", 1, "--seed", 3, "--class", 1]
    target, picture = tmp_path / "new" / "clip.webp", tmp_path / "plan.png"
    assert run("generate", *arguments, "--guidance", 2, "--out", target, "--plan-picture", picture) == 0
    pipe = Pipeline.from_pretrained(tiny_model)
    expected = pipe(
        num_frames=6, num_inference_steps=4, lag=1, seed=3, class_id=1, guidance_scale=2.0, progress=False
    )
    np.testing.assert_array_equal(read_video(target), expected.frames[0].numpy())
    lag(6, 4, 1).plot(tmp_path / "same.png", solver=DDIM(pipe.schedule, 4))
    assert picture.read_bytes() == (tmp_path / "same.png").read_bytes()


def test_generate_continues_a_video(tiny_model: Path, tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    export_video(clip, tmp_path / "clip")
    arguments = ["--model", tiny_model, "--frames", 6, "--steps", 4, "--lag", 1, "--quiet"]
    given = ["--video", tmp_path / "clip", "--video-frames", 3]
    assert run("generate", *arguments, *given, "--out", tmp_path / "out.webp", "--scale", 2) == 0
    result = read_video(tmp_path / "out.webp")
    assert result.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(result[:3, ::2, ::2], clip[:3])


@pytest.mark.parametrize("command", ["generate", "stream"])
def test_the_seed_that_was_drawn_is_shown(
    command: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", tiny_model, "--frames", 6, "--steps", 4, "--lag", 1]
    assert run(command, *arguments, "--out", tmp_path / "first") == 0
    seed = int(re.search(r"seed (\d+)", capsys.readouterr().out)[1])  # type: ignore[index]
    assert run(command, *arguments, "--seed", seed, "--out", tmp_path / "again") == 0
    assert run(command, *arguments, "--out", tmp_path / "another") == 0
    first, again, another = (read_video(tmp_path / name) for name in ("first", "again", "another"))
    assert np.array_equal(first, again) and not np.array_equal(first, another)


def test_a_continuation_keeps_the_frame_rate_of_its_source(tiny_model: Path, tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), np.uint8)
    export_video(clip, tmp_path / "clip.webp", fps=20)
    arguments = ["--model", tiny_model, "--frames", 6, "--steps", 4, "--lag", 1, "--seed", 1, "--quiet"]
    arguments += ["--video", tmp_path / "clip.webp"]
    assert run("generate", *arguments, "--out", tmp_path / "same.mp4") == 0
    assert run("generate", *arguments, "--out", tmp_path / "other.mp4", "--fps", 5) == 0
    assert open_video(tmp_path / "same.mp4").fps == 20 and open_video(tmp_path / "other.mp4").fps == 5
    out = Pipeline.from_pretrained(tiny_model)(6, 4, 1, video=tmp_path / "clip.webp", seed=1, progress=False)
    assert out.fps == 20
    assert run("generate", *arguments, "--given", "decoded", "--out", tmp_path / "decoded") == 0
    shown = Pipeline.from_pretrained(tiny_model).decode(out.latents[0]).numpy()
    assert int(np.abs(read_video(tmp_path / "decoded").astype(int) - shown).max()) <= 1


def test_quiet_prints_nothing(tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", tiny_model, "--frames", 2, "--steps", 2, "--lag", 1, "--quiet"]
    arguments += ["--out", tmp_path / "x"]
    assert run("generate", *arguments) == 0
    assert run("stream", *arguments) == 0
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize("name", ["live", "live.mp4"])
def test_stream_writes_the_frames_of_generate(tiny_model: Path, tmp_path: Path, name: str) -> None:
    arguments = ["--model", tiny_model, "--frames", 5, "--steps", 4, "--lag", 2, "--seed", 7, "--quiet"]
    assert run("stream", *arguments, "--out", tmp_path / name) == 0
    assert run("generate", *arguments, "--out", tmp_path / "whole.webp") == 0
    streamed, whole = read_video(tmp_path / name), read_video(tmp_path / "whole.webp")
    assert streamed.shape == whole.shape
    if name == "live":
        np.testing.assert_array_equal(streamed, whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--out", "clip.mkv"], ".mp4, .webp, .gif"),
        (["generate", "--model", "no-such-model", "--out", "x.webp"], "no-such-model"),
        (["generate", "--model", "TINY", "--out", "x.webp", "--video-frames", "3"], "--video"),
        (["generate", "--model", "TINY", "--out", "x.webp", "--video", "none.mp4"], "no video"),
        (["generate", "--model", "TINY", "--out", "x.webp", "--quiet", "--lag", "-1"], "lag"),
        (["stream", "--model", "TINY", "--out", "x", "--steps", "2000", "--lag", "2000"], "1000"),
        (["stream", "--model", "TINY", "--out", "x", "--lag", "1"], "window"),
        (["stream", "--model", "TINY", "--out", "x.gif"], "cannot grow"),
        (["generate", "--model", "TINY", "--out", "x.webp", "--device", "foo"], "device: got 'foo'"),
        (["stream", "--model", "TINY", "--out", "x", "--device", "cuda:99"], "device: got 'cuda:99'"),
        (["generate", "--model", "no-such-model", "--out", "x.webp", "--scale", "0"], "scale"),
        (["stream", "--model", "no-such-model", "--out", "x", "--scale", "0"], "scale"),
        (["generate", "--model", "no-such-model", "--out", f"{__file__}/x.webp"], "not a folder"),
        (["generate", "--model", "no-such-model", "--out", "x.webp", "--plan-picture", "p.jpg"], ".png"),
        (["generate", "--model", "no-such-model", "--out", "x.webp", "--fps", "1e300"], "fps"),
        (["generate", "--model", "no-such-model", "--out", "x.webp", "--fps", "nan"], "fps"),
        (["generate", "--model", "no-such-model", "--out", "x.webp", "--scale", "9" * 30], "scale"),
        (
            ["generate", "--model", "TINY", "--frames", "900000", "--scale", "64", "--out", "x.gif"],
            "animation",
        ),
        (
            ["generate", "--model", "TINY", "--out", "x.webp", "--lag", "50", "--class", "1" + 20 * "0"],
            "class",
        ),
        (["generate", "--model", "no-such-model", "--out", 300 * "x"], "too long"),
        (["generate", "--model", 300 * "x", "--out", "x.webp"], "too long"),
        (["generate", "--model", "TINY", "--out", "x.webp", "--video", 300 * "x"], "too long"),
        (["generate", "--model", "a\0b", "--out", "x.webp"], "a"),
        (["generate", "--model", "TINY", "--video", "a\0b", "--out", "x.webp"], "a"),
        (["generate", "--model", "no-such-model", "--out", "a\0b.webp"], "null byte"),
        (["generate", "--model", "no-such-model", "--out", "/dev/null"], "device"),
        (["generate", "--model", "no-such-model", "--out", __file__], ".mp4"),
        (["bench", "--compare", "a\0b", "\udcff"], "a"),
        (["convert", "a\0b.pt", "out.safetensors"], "a"),
        (["convert", "none.pt", "out.safetensors"], "none.pt"),
        (["train", "none.toml"], "none.toml"),
        (["bench", "--folder", "none"], "source checkout"),
        (["bench", "--table", "none.json"], "none.json"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*[str(tiny_model) if argument == "TINY" else argument for argument in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("ardiff: ") and message in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--model", "no-such-model", "--out", tmp_path / "x.webp", "--debug") == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors and "CheckpointError" in errors


def test_a_fault_of_ours_asks_to_be_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "info", lambda options: {}["nothing"])
    assert run("info", "--json") == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and len(errors.splitlines()) == 1
    assert "KeyError" in errors and errors.endswith("ardiff info --json\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no"), 2, "no"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "No space"),
        (PermissionError(errno.EACCES, "Permission denied", "secret"), 2, "'secret'"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("what\x1b[31m?"), 1, "report"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt("stopped at step 4"), 130, "stopped at step 4"),
    ],
)
def test_how_errors_end(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(options: object) -> int:
        raise error

    monkeypatch.setattr(commands, "info", failing)
    assert run("info") == code
    errors = capsys.readouterr().err
    assert message in errors and "\x1b" not in errors and len(errors.splitlines()) == bool(message)


def test_warnings_stand_above_the_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warning(options: object) -> int:
        with tqdm(total=2, file=sys.stderr, mininterval=0) as bar:
            bar.update()
            warnings.warn("something is slow", stacklevel=1)
            logging.getLogger("ardiff_engine.somewhere").warning("something is %s", "left out")
        return 0

    monkeypatch.setattr(commands, "info", warning)
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("info") == 0
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert "ardiff: warning: something is slow" in lines and "ardiff: something is left out" in lines
    assert warnings.showwarning is shown and not logging.getLogger("ardiff_engine").handlers


def test_a_disk_that_fills_up_is_no_mistake_and_a_wrapped_error_is_what_it_wraps() -> None:
    full, wrapper = MediaError("writing x"), ArdiffError("the stream was stopped by KeyError")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    wrapper.__cause__ = KeyError("x")
    assert command_end.explained(full) == (1, "writing x")
    assert command_end.explained(wrapper)[0] == 1 and "KeyError" in command_end.explained(wrapper)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_error_after_a_signal_is_the_signals(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Libraries turn the interrupt into errors of their own, and finalizers lose it."""
    before = signal.getsignal(number)

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def converted(options: object) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RuntimeError("a damaged file") from None
        return 0

    def lost(options: object) -> int:
        Finalized()
        time.sleep(1)
        return 0

    for command in (converted, lost):
        monkeypatch.setattr(commands, "info", command)
        assert run("info") == 128 + number
        assert capsys.readouterr().err == "ardiff: stopped\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_an_import_come_to_its_end(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PyTorch imports modules from C++, which an interrupt there aborts."""
    lines = f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(1)\nwhole = True\n"
    (tmp_path / f"imported_at_{int(number)}.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def imports(options: object) -> int:
        seen.append(importlib.import_module(f"imported_at_{int(number)}").whole)
        time.sleep(PATIENCE)
        return 0

    monkeypatch.setattr(commands, "info", imports)
    assert run("info") == 128 + number and seen == [True]


def test_convert_writes_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"weight": weight, "step": 7}, tmp_path / "model.pt")
    assert run("convert", tmp_path / "model.pt", tmp_path / "model.safetensors") == 0
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors")["weight"], weight, rtol=0, atol=0)
    assert "1 tensors" in capsys.readouterr().out


def test_training_commands_hand_their_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ardiff_engine import training

    calls: list[tuple[object, ...]] = []

    def called(name: str, *arguments: object) -> Path:
        calls.append((name, *arguments))
        return tmp_path

    for name in ("run_train_vae", "run_encode", "run_train"):
        monkeypatch.setattr(training, name, partial(called, name))
    assert run("train-vae", "a.toml") == 0
    assert run("encode", "b.toml", "--set", "num_frames=8") == 0
    assert "latents: " in capsys.readouterr().out
    assert run("train", "c.toml", "--set", "run.steps=5", "--set", "optimizer.lr=1e-3", "--resume") == 0
    assert capsys.readouterr().out == f"model: {tmp_path}\n"
    assert calls == [
        ("run_train_vae", "a.toml", [], False),
        ("run_encode", "b.toml", ["num_frames=8"]),
        ("run_train", "c.toml", ["run.steps=5", "optimizer.lr=1e-3"], True),
    ]


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"python", "packages", "native", "backends"}
