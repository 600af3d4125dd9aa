# SPDX-License-Identifier: Apache-2.0
"""Command lines to try: from the real parser, with good and odd values for every option."""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ardiff_engine as ade
from ardiff_engine.cli import build_parser

MODEL, CLIP, VAE_CONFIG, CONFIG, ENCODE_CONFIG = "model", "clip.webp", "vae.toml", "model.toml", "encode.toml"
NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "7",
    "9" * 25,
    "-" + "9" * 25,
    "1e300",
    "nan",
    "-inf",
    "0x10",
    "",
    "x",
    "٣",
    "1_0",
)
FRACTIONS = ("0.5", "1e-300", "1e300", "-0.0", "inf", "60", "1000", "1001", "8,5")
# Nothing here may be written outside of the folder that the line runs in.
PATHS = (
    *("", ".", "..", "/", "/dev/null", "/dev/full", "/dev/stdin", "/proc/self/mem", "/proc/x.mp4"),
    *("nowhere", "text.txt", "text.txt/x.mp4", "fifo", "loop", "loop/x.mp4", "dangling", "empty", "videos"),
    *("broken.mp4", "readme.png", "new/deep/x.mp4", "x.mkv", "x.mp4 ", "-x.mp4", "a\nb.mp4", "a\0b.mp4"),
    *("\x1b[31m.mp4", "caf\udce9.mp4", "ümlaut.gif", "http://127.0.0.1:9/x.mp4", "concat:clip.webp"),
    *("12:30.mp4", "n" * 255, "n" * 251 + ".mp4", "n" * 256 + ".mp4", "d/" * 2100 + "x.mp4"),
    *("x.safetensors", "x.json", "x.png", "x.gif", "x.webp", CLIP, MODEL),
)
WORDS = (
    "cpu",
    "meta",
    "cuda",
    "cuda:99",
    "mps",
    "cpu:1",
    "run.steps=1",
    "run.batch=1e9",
    "run.output=",
    "=",
    "a.b=c",
)
PATH_OPTIONS = "model video out plan_picture config source target json table compare folder".split()
SMALL_RUN = """
initialisation = "fan_in"
run = { output = "vae", steps = 4, batch = 2, threads = 1, log_every = 1, checkpoint_every = 2 }
data = { source = "videos", path = "videos", num_frames = 1, held_out = 1 }
[model]
image_size = 16
patch_size = 4
encoder_width = 16
encoder_layers = 1
encoder_heads = 2
decoder_width = 16
decoder_layers = 1
decoder_heads = 2
num_latent_tokens = 4
token_size = 4
codebook_logits = 8
quantized_channels = 8
hidden_channels = 4
channel_multipliers = [1, 1, 1]
res_blocks = 1
norm_groups = 4
"""
TRANSFORMER_RUN = """
vae = "model/vae"
run = { output = "run", steps = 4, batch = 2, threads = 1, log_every = 1, checkpoint_every = 2 }
data = { source = "videos", path = "videos", num_frames = 4, held_out = 1 }
[model]
num_frames = 4
tokens_per_frame = 4
channels = 4
width = 16
depth = 1
heads = 2
context_tokens = 2
context_dim = 8
"""
BENCHMARK = """
def test_sum(benchmark):
    benchmark.extra_info.update(op="sum", shape="9", threads=1, opponent="loop", seconds=1e-3,
                                opponent_seconds=3e-3, ratio=3.0)
    benchmark.pedantic(sum, (range(9),), rounds=1)
"""


def make_inputs(folder: Path) -> None:
    """What the lines may name: a tiny model, videos, settings, benchmarks, and names that cannot be used."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    vae = ade.models.TiTokConfig(
        image_size=16, patch_size=4, encoder_width=16, encoder_layers=1, encoder_heads=2, decoder_width=16,
        decoder_layers=1, decoder_heads=2, num_latent_tokens=4, token_size=4, codebook_logits=16,
        quantized_channels=8, hidden_channels=8, channel_multipliers=(1, 1, 2), res_blocks=1, norm_groups=4,
    )  # fmt: skip
    transformer = ade.models.ARDiffusionConfig(
        num_frames=8, tokens_per_frame=4, channels=4, width=32, depth=2, heads=2, context_tokens=3,
        context_dim=8, num_classes=3,
    )  # fmt: skip
    models = ade.models.ARDiffusionTransformer(transformer), ade.models.TiTok(vae)
    ade.Pipeline(*models, ade.NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)).save_pretrained(folder / MODEL)
    pixels = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8)
    ade.export_video(pixels, folder / CLIP)
    for index in range(3):
        ade.export_video(pixels, folder / "videos" / f"{index}.webp")
    (folder / VAE_CONFIG).write_text(SMALL_RUN)
    (folder / CONFIG).write_text(TRANSFORMER_RUN)
    (folder / ENCODE_CONFIG).write_text(
        'vae = "model/vae"\nvideos = "videos"\noutput = "latents"\nnum_frames = 4\n'
    )
    (folder / "few").mkdir()
    (folder / "few" / "bench_sum.py").write_text(BENCHMARK)
    torch.save({"weight": torch.ones(3)}, folder / "weights.pt")
    (folder / "text.txt").write_text("nothing of the kind\n")
    (folder / "empty").touch()
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    Image.fromarray(pixels[0]).save(folder / "readme.png")


def make_odd_names(folder: Path) -> None:
    """The names that cannot be copied with the others."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("gone/x.mp4")


def line(rng: random.Random) -> list[str]:
    """A line that works, as a rule with a few changes: odd values, options more, options less."""
    parsers = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert isinstance(parsers, dict)
    ending = [name for name in parsers if name != "serve"]  # a server runs until it is told to stop
    command = rng.choice([*ending, "generate", "generate", "stream", "stream"])
    made = _working(command, rng)
    actions = [action for action in parsers[command]._actions if action.dest not in ("help", "debug")]
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        action = rng.choice(actions)
        values = [_value(action, rng) for _ in range(_count(action))]
        if action.option_strings:
            name = rng.choice(action.option_strings)
            made += [f"{name}={values[0]}"] if len(values) == 1 and name[1] == "-" else [name, *values]
        elif rng.random() < 0.5:
            made += values
        else:
            made = [made[0], *values, *made[2:]]
    if rng.random() < 0.05:
        made.pop(rng.randrange(len(made)))
    return made


def _working(command: str, rng: random.Random) -> list[str]:
    sampling = ["--model", MODEL, "--steps", "4", "--lag", "2"]
    if rng.random() < 0.3:
        sampling += ["--video", CLIP, "--video-frames", "3"]
    length = rng.choice((["--frames", "8"], ["--frames", "8"], ["--frames", "500"]))
    lines = {
        "generate": [*sampling, *length, "--out", rng.choice(("o.mp4", "o.webp", "o.gif", "o"))],
        "stream": [*sampling, *rng.choice((length, [])), "--out", rng.choice(("o.mp4", "o"))],
        "play": ["--model", MODEL, "--steps", "4", *length, "--keys", "..7. q", "--out", "o.webp"],
        "train-vae": [VAE_CONFIG],
        "encode": [ENCODE_CONFIG],
        "train": [CONFIG],
        "convert": ["weights.pt", "weights.safetensors"],
        "bench": ["--folder", "few", "--json", "record.json"],
        "report": [*rng.sample([CLIP, "readme.png"], rng.randint(1, 2)), "--out", "report.html"],
        "info": rng.choice(([], ["--json"])),
    }
    return [command, *lines[command]]


def _count(action: argparse.Action) -> int:
    return 0 if action.nargs == 0 else action.nargs if isinstance(action.nargs, int) else 1


def _value(action: argparse.Action, rng: random.Random) -> str:
    if action.choices is not None and rng.random() < 0.5:
        return str(rng.choice(list(action.choices)))
    if action.dest in PATH_OPTIONS:
        return rng.choice(PATHS)
    if action.type in (int, float):
        return rng.choice(NUMBERS + FRACTIONS if action.type is float else NUMBERS)
    return rng.choice(WORDS + NUMBERS + PATHS)
