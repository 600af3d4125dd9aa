# SPDX-License-Identifier: Apache-2.0
"""Takes frames from an endless video as they become clean:  python examples/stream.py --out live"""

from __future__ import annotations

import argparse

import ardiff_engine as ade
from ardiff_engine.media import open_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="moving-digits", help="bundled model or a model folder")
    parser.add_argument("--frames", type=int, default=32, help="stop after this many")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lag", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="outputs/live", help="a folder of .png, or an .mp4 that grows")
    options = parser.parse_args()

    pipe = ade.Pipeline.from_pretrained(options.model)
    with open_writer(options.out, fps=8, scale=8) as writer:
        # num_frames=None never ends; leaving the loop cancels the stream and gives its memory back.
        for frame in pipe.stream(
            num_frames=None, num_inference_steps=options.steps, lag=options.lag, seed=options.seed
        ):
            writer.write(frame.image)
            print(f"frame {frame.index} after {frame.seconds:.2f} s")
            if writer.count == options.frames:
                break


if __name__ == "__main__":
    main()
