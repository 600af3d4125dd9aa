# SPDX-License-Identifier: Apache-2.0
"""The command line on a text-to-video folder: the pipeline's videos, and mistakes told before loading."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from effort import ALL
from helpers import wan_folder
from PIL import Image

import ardiff_engine as ade
from ardiff_engine.cli import main
from ardiff_engine.errors import ConfigError
from ardiff_engine.pipeline import memory as memory_of_videos
from ardiff_engine.pipeline.parts import find_parts
from ardiff_engine.pipeline.systems import fitting, system_named

SIZE = (32, 48)
GENERATE = [
    "generate",
    "--system",
    "self-forcing",
    "--size",
    "32x48",
    "--frames",
    "21",
    "--seed",
    "5",
    "--quiet",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder.write_folder(tmp_path_factory.mktemp("wan"))


def pictures(place: Path) -> torch.Tensor:
    return torch.from_numpy(ade.read_video(place))


def test_a_prompt_and_a_schedule(folder: Path, tmp_path: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing")
    command = [*GENERATE, "--model", str(folder)]
    assert main([*command, "--prompt", "a red cat", "--out", str(tmp_path / "one")]) == 0
    plain = pipe("a red cat", num_frames=21, size=SIZE, seed=5, progress=False)
    assert torch.equal(pictures(tmp_path / "one"), plain.frames[0])

    schedule = tmp_path / "prompts.json"
    schedule.write_text(json.dumps({"0": "a red cat", "5": "blue dog"}))
    assert main([*command, "--prompts", str(schedule), "--out", str(tmp_path / "two")]) == 0
    changed = pipe({0: "a red cat", 5: "blue dog"}, num_frames=21, size=SIZE, seed=5, progress=False)
    assert torch.equal(pictures(tmp_path / "two"), changed.frames[0])
    assert not torch.equal(changed.frames, plain.frames)


def test_guidance_a_first_frame_and_a_continuation(folder: Path, tmp_path: Path) -> None:
    command = ["generate", "--model", str(folder), "--size", "32x48", "--seed", "5", "--quiet"]
    wan = [*command, "--system", "wan", "--steps", "3", "--frames", "9", "--negative-prompt", "the beach"]
    assert main([*wan, "--prompt", "a cat", "--out", str(tmp_path / "wan")]) == 0
    pipe = ade.Pipeline.from_pretrained(folder, system="wan")
    out = pipe("a cat", num_frames=9, size=SIZE, seed=5, num_inference_steps=3, negative_prompt="the beach")
    made = pictures(tmp_path / "wan")
    assert torch.equal(made, out.frames[0])

    first = ["--prompt", "a cat", "--image", str(sorted((tmp_path / "wan").iterdir())[2]), "--frames", "13"]
    assert main([*command, "--system", "longlive", *first, "--out", str(tmp_path / "first")]) == 0
    assert torch.equal(pictures(tmp_path / "first")[0], made[2])
    more = ["--prompt", "a cat", "--video", str(tmp_path / "wan"), "--video-frames", "5", "--frames", "17"]
    assert main([*command, "--system", "longlive", *more, "--out", str(tmp_path / "more")]) == 0
    longer = pictures(tmp_path / "more")
    assert len(longer) == 17 and torch.equal(longer[:5], made[:5])


def test_an_image_to_video_model(folder: Path, tmp_path: Path, capsys) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    shutil.rmtree(model / "transformer")
    wan_folder.transformer(in_channels=12).save_pretrained(model / "transformer")
    picture = tmp_path / "first.png"
    Image.new("RGB", (50, 70), (200, 30, 60)).save(picture)
    command = [
        "generate",
        "--model",
        str(model),
        "--system",
        "wan",
        "--steps",
        "3",
        "--frames",
        "9",
        "--quiet",
    ]
    command += ["--size", "32x48", "--seed", "5", "--prompt", "a cat", "--out", str(tmp_path / "out")]
    assert main(["info", str(model), "--system", "wan"]) == 0
    assert "first picture" in capsys.readouterr().out
    assert main(command) == 2 and "--image" in capsys.readouterr().err
    assert main([*command, "--image", str(picture)]) == 0
    pipe = ade.Pipeline.from_pretrained(model, system="wan")
    options = {"num_frames": 9, "size": SIZE, "seed": 5, "num_inference_steps": 3}
    assert torch.equal(pictures(tmp_path / "out"), pipe("a cat", image=picture, **options).frames[0])


def test_a_stream_writes_the_same_frames(folder: Path, tmp_path: Path) -> None:
    options = ["--prompt", "a cat", "--model", str(folder)]
    assert main([*GENERATE, *options, "--out", str(tmp_path / "call")]) == 0
    assert main(["stream", *GENERATE[1:], *options, "--out", str(tmp_path / "live")]) == 0
    assert torch.equal(pictures(tmp_path / "live"), pictures(tmp_path / "call"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--frames", "80"], "81 or 69"),
        (["--size", "32x50"], "32 x 48"),
        (["--size", "32"], "height x width"),
        (["--system", "longlove"], "longlive"),
        (["--lag", "3"], "--lag"),
        (["--steps", "7"], "distilled"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--video-frames", "5"], "--video"),
        (["--prompts", "schedule.json"], "one of them"),
        (["--vae", "nowhere"], "nowhere"),
        (["--lora", "nowhere"], "nowhere"),
        (["--fps", "-1"], "fps"),
        (["--seed", str(2**63)], "seed"),
        (["--device", "cuda:99"], "device"),
        (["--negative-prompt", "a dog"], "guidance"),
        (["--model", "nowhere"], "Nothing is downloaded"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, changed: list[str], says: str
) -> None:
    refuse_to_load(monkeypatch)
    command = [
        *GENERATE,
        "--model",
        str(folder),
        "--prompt",
        "a cat",
        "--out",
        str(tmp_path / "out"),
        *changed,
    ]
    try:
        code = main(command)
    except SystemExit as error:  # argparse's own
        code = int(str(error.code))
    assert code == 2 and re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_no_frame_would_show_is_told_before_anything_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    refuse_to_load(monkeypatch)
    schedule = tmp_path / "prompts.json"
    schedule.write_text('{"0": "a cat", "500": "a dog"}')
    command = [*GENERATE, "--model", str(folder), "--prompts", str(schedule), "--out", str(tmp_path / "out")]
    for system in ("longlive", "wan"):
        assert main([*command, "--system", system]) == 2 and "frame 500" in capsys.readouterr().err


def test_too_little_memory_is_told_with_the_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    refuse_to_load(monkeypatch)
    monkeypatch.setattr("ardiff_engine.device.available_memory", lambda: 1 << 20)
    assert main([*GENERATE, "--model", str(folder), "--prompt", "a cat", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert re.search(r"takes 0\.\d\d GiB, and 0\.00 GiB", said) and re.search(r"pages +\d+\.\d MiB", said)


def test_a_pipeline_that_does_not_fit_reads_no_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory just below, and just at, what its parts and the smallest video take."""
    parts = find_parts(folder)
    for dtype in (torch.float32, torch.bfloat16):
        least = memory_of_videos.least_memory(parts, system_named("self-forcing"), dtype=dtype)
        together = least.running + least.text
        with monkeypatch.context() as patched:
            refuse_to_load(patched)
            patched.setattr("ardiff_engine.device.available_memory", lambda short=together - 1: short)
            with pytest.raises(ConfigError, match=r"(?s)GiB are free.*pages.*autoencoder.*text encoder"):
                ade.Pipeline.from_pretrained(folder, system="self-forcing", dtype=dtype)
        with monkeypatch.context() as patched:
            patched.setattr("ardiff_engine.device.available_memory", lambda enough=least.running: enough)
            pipe = ade.Pipeline.from_pretrained(folder, system="self-forcing", dtype=dtype, text=False)
        assert pipe.dtype == dtype
        with pytest.raises(ConfigError, match="text encoder"):
            pipe("a cat", num_frames=9, size=SIZE, progress=False)


def test_memory_counts_weights_as_they_are_stored_and_as_they_are_used(folder: Path) -> None:
    weights = sum(p.numel() for p in wan_folder.transformer().parameters())
    for dtype in (torch.float32, torch.bfloat16):
        told = memory_of_videos.video_memory(
            find_parts(folder), system_named("longlive"), size=SIZE, frames=9, dtype=dtype
        )
        assert told.stored == 4 * weights and told.engine.weights_bytes == dtype.itemsize * weights


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = "ardiff_engine.weights.safetensors_file.SafetensorsFile.read"
    monkeypatch.setattr(reader, lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("ardiff_engine.conditions.UMT5.from_pretrained", lambda *_, **__: pytest.fail("text"))


def test_what_a_folder_holds(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    refuse_to_load(monkeypatch)
    if not ALL:  # to count the pages of every system takes half a minute
        few = ["wan", "self-forcing", "longlive", "causvid"]
        monkeypatch.setattr("ardiff_engine.commands_video.fitting", lambda model: few)
    facts = {}
    for streams in (1, 5):
        assert main(["info", str(folder), "--size", "32x48", "--streams", str(streams), "--json"]) == 0
        facts[streams] = json.loads(capsys.readouterr().out)
    weights = sum(p.numel() for p in wan_folder.transformer().parameters())
    assert facts[1]["transformer"]["weights"] == weights
    assert (
        facts[1]["text_encoder"]["width"] == wan_folder.TEXT_WIDTH and facts[1]["autoencoder"]["scale"] == 8
    )
    one, five = (facts[streams]["memory_bytes"]["longlive"] for streams in (1, 5))
    assert five["pages"] == 5 * one["pages"] and five["transformer"] == one["transformer"]
    assert {"wan", "self-forcing", "longlive", "causvid"} <= facts[1]["memory_bytes"].keys()
    assert main(["info", str(folder), "--size", "32x48"]) == 0
    assert "self-forcing" in capsys.readouterr().out


def test_the_memory_that_is_foretold_is_what_the_engine_takes(folder: Path) -> None:
    """The pages, to the byte, and the state of the decoder."""
    pipe = ade.Pipeline.from_pretrained(folder, system="longlive")
    stream = pipe.stream("a cat", size=SIZE, seed=0)
    for _ in range(30):
        next(stream)
    parts = find_parts(folder)
    told = memory_of_videos.video_memory(parts, system_named("longlive"), size=SIZE, frames=None)
    pool = stream._stream.engine.pool
    assert told.engine.pages_bytes == pool.k.nbytes + pool.v.nbytes
    decoder = pipe.vae.decoder()
    for _ in range(2):
        decoder.push(torch.zeros(1, 4, 4, 6))
    assert told.decoders == decoder.nbytes
    assert set(fitting(pipe.transformer)) == set(fitting(parts.empty_transformer()))
    stream.close()
