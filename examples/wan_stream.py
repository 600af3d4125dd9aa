# SPDX-License-Identifier: Apache-2.0
"""Streams a video from a prompt and changes the prompt on its way:

python examples/wan_stream.py FOLDER "a cat walks on the beach" "the cat begins to swim" --out cat.mp4
"""

from __future__ import annotations

import argparse

import torch

import ardiff_engine as ade
from ardiff_engine.media import open_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder in diffusers' layout, see docs/models.md")
    parser.add_argument("prompts", nargs="+", help="one after the other")
    parser.add_argument("--system", default="longlive")
    parser.add_argument("--transformer", help="a distilled transformer, where it lies elsewhere")
    parser.add_argument("--frames", type=int, default=81, help="frames of each prompt, at least")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="outputs/wan", help="a folder of .png, or an .mp4 that grows")
    options = parser.parse_args()

    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    pipe = ade.Pipeline.from_pretrained(
        options.model,
        system=options.system,
        transformer=options.transformer,
        device=options.device,
        dtype=dtype,
    )
    # Each prompt is encoded once. After that the encoder, which is larger than the model, may go.
    first, *later = [pipe.prompts.encode(prompt) for prompt in options.prompts]
    pipe.prompts.unload()
    stream = pipe.stream(first, num_frames=None, size=tuple(options.size), seed=options.seed)
    change = options.frames
    with open_writer(options.out, fps=pipe.system.fps) as writer:
        for frame in stream:
            writer.write(frame.image)
            print(f"frame {frame.index} after {frame.seconds:.2f} s")
            if writer.count < change:
                continue
            if not later:
                break
            # Frames on their way still show the old prompt; the receipt says where the new one begins.
            receipt = stream.set_prompt(later.pop(0))
            change = receipt.first_frame + options.frames
            print(f"new prompt from frame {receipt.first_frame}")
    stream.close()


if __name__ == "__main__":
    main()
