# SPDX-License-Identifier: Apache-2.0
"""Continues a video:  python examples/continue_video.py clip.mp4 --given 8 --frames 64 --out longer.mp4

Without a video, a clip of moving digits that the bundled model never saw is continued (needs scikit-learn).
"""

from __future__ import annotations

import argparse

import ardiff_engine as ade
from ardiff_engine.data.moving_digits import MovingDigits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", nargs="?", help="mp4, webp, gif, or a folder of png")
    parser.add_argument("--model", default="moving-digits", help="bundled model or a model folder")
    parser.add_argument("--given", type=int, default=8, help="frames that the model is shown")
    parser.add_argument("--frames", type=int, default=64, help="frames of the result, given ones included")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lag", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="outputs/continued.mp4")
    options = parser.parse_args()

    if options.video:
        given = ade.read_video(options.video, max_frames=options.given)
    else:
        given = MovingDigits(digit_size=18, split="held_out").clip(0, num_frames=options.given).video
    pipe = ade.Pipeline.from_pretrained(options.model)
    out = pipe(options.frames, options.steps, options.lag, video=given, seed=options.seed)
    ade.export_video(out.frames[0], options.out, fps=8, scale=8)
    print(f"{options.out}: {len(given)} given frames and {options.frames - len(given)} generated ones")


if __name__ == "__main__":
    main()
