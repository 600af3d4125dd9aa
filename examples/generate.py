# SPDX-License-Identifier: Apache-2.0
"""Generates a video and writes it to a file:  python examples/generate.py --frames 64 --out digits.mp4"""

from __future__ import annotations

import argparse

import ardiff_engine as ade


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="moving-digits", help="bundled model or a model folder")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lag", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="outputs/digits.mp4")
    options = parser.parse_args()

    pipe = ade.Pipeline.from_pretrained(options.model)
    out = pipe(
        num_frames=options.frames, num_inference_steps=options.steps, lag=options.lag, seed=options.seed
    )
    ade.export_video(out.frames[0], options.out, fps=8, scale=8)
    print(f"{options.out}: {out.frames.shape[1]} frames, {out.stats.cells_per_second:.0f} cells per second")


if __name__ == "__main__":
    main()
