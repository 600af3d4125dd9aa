# SPDX-License-Identifier: Apache-2.0
"""One video made by several processes, each with a share of the heads and of the pages:

torchrun --nproc-per-node 2 examples/wan_processes.py FOLDER "a cat walks on the beach" --out cat.mp4

With --system wan --branches 2 each computes one of the two branches of guidance instead.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist

import ardiff_engine as ade


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder in diffusers' layout, see docs/models.md")
    parser.add_argument("prompt")
    parser.add_argument("--system", default="self-forcing")
    parser.add_argument("--transformer", help="a distilled transformer, where it lies elsewhere")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--branches", type=int, default=1, help="parts that share the branches of guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cuda", action="store_true", help="each process on the GPU of its own number")
    parser.add_argument("--out", default="outputs/wan_processes.mp4")
    options = parser.parse_args()

    device = f"cuda:{os.environ['LOCAL_RANK']}" if options.cuda else "cpu"
    if options.cuda:
        torch.cuda.set_device(device)
    # After so long without an answer of another process, this one ends.
    dist.init_process_group("nccl" if options.cuda else "gloo", timeout=timedelta(minutes=10))
    try:
        pipe = ade.Pipeline.from_pretrained(
            options.model,
            system=options.system,
            transformer=options.transformer,
            device=device,
            dtype=torch.bfloat16 if options.cuda else torch.float32,
        ).over_processes(branches=options.branches)
        first = dist.get_rank() == 0
        # The same call with the same seed in every process; all of them get the video.
        out = pipe(
            options.prompt,
            options.frames,
            size=tuple(options.size),
            seed=options.seed,
            progress=first,
        )
        if first:
            path = ade.export_video(out.frames[0], options.out, fps=out.fps)
            print(f"{path}: {dist.get_world_size()} processes, {out.seconds:.1f} s")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
