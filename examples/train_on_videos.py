# SPDX-License-Identifier: Apache-2.0
"""Trains both stages on a folder of videos, then draws one:  python examples/train_on_videos.py my_videos

The result is a model folder for `Pipeline.from_pretrained`. Sizes suit 32x32 pictures and a CPU; for more,
enlarge `image_size`, the widths and the depths. Without a folder, a few clips of moving digits are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ardiff_engine as ade
from ardiff_engine.data.moving_digits import MovingDigits
from ardiff_engine.training import run_train, run_train_vae

AUTOENCODER = """
run = { output = "outputs/own/vae", steps = 2000, batch = 32, validation_clips = 16 }
data = { source = "videos", num_frames = 1, held_out = 1 }
optimizer = { lr = 1e-3 }
loss = { l2 = 4.0, latent_noise = 0.1 }

[model]
image_size = 32
patch_size = 8
encoder_width = 64
encoder_layers = 2
encoder_heads = 4
decoder_width = 64
decoder_layers = 2
decoder_heads = 4
num_latent_tokens = 16
token_size = 4
codebook_logits = 64
quantized_channels = 32
hidden_channels = 16
channel_multipliers = [1, 1, 2, 2]
res_blocks = 1
norm_groups = 8
"""

TRANSFORMER = """
run = { output = "outputs/own/model", steps = 2000, batch = 16, validation_clips = 4 }
data = { source = "videos", num_frames = 16, held_out = 1 }
optimizer = { lr = 5e-4, warmup = 100 }
ema = { decay = 0.999 }

[model]
num_frames = 16
tokens_per_frame = 16
channels = 4
width = 128
depth = 4
heads = 4
context_tokens = 4
context_dim = 64
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="?", type=Path, help="folder with video files of at least 16 frames")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each stage")
    parser.add_argument("--batch", type=int, default=16, help="clips per step")
    parser.add_argument("--out", type=Path, default=Path("outputs/own"))
    options = parser.parse_args()

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    videos = options.videos or make_videos(out / "videos")
    common = [f'data.path="{videos}"', f"run.steps={options.steps}", f"run.batch={options.batch}"]
    (out / "vae.toml").write_text(AUTOENCODER)
    (out / "model.toml").write_text(TRANSFORMER)
    vae = run_train_vae(out / "vae.toml", [*common, f'run.output="{out / "vae"}"'])
    model = run_train(out / "model.toml", [*common, f'run.output="{out / "model"}"', f'vae="{vae}"'])

    video = ade.Pipeline.from_pretrained(model)(num_frames=16, num_inference_steps=20, lag=2)
    ade.export_video(video.frames[0], out / "sample.webp", fps=8, scale=8)
    print(f"model: {model}   sample: {out / 'sample.webp'}")


def make_videos(folder: Path) -> Path:
    for index in range(8):
        clip = MovingDigits(digit_size=16).clip(index, num_frames=24)
        ade.export_video(clip.video, folder / f"clip_{index}.mp4")
    return folder


if __name__ == "__main__":
    main()
