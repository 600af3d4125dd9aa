# SPDX-License-Identifier: Apache-2.0
"""One of several processes that run a Wan together: `ulysses_worker.py FOLDER BRANCHES`; see
test_ulysses.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers.small_wan import small_wan

import ardiff_engine as ade
from ardiff_engine import command_end, systems
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.ulysses import over_processes

CONFIG = WanConfig(64, 2, 4, 96, channels=3, out_channels=3, text_dim=10, text_tokens=8)
STREAMS = (
    ("self-forcing", 9, (2, 4), 1.0),
    ("longlive", 12, (4, 6), 1.0),
    ("magi-1", 4, (2, 2), 1.0),
    ("wan", 5, (4, 2), 3.0),
)
"""System, frames, size, guidance; 1 x 1 to 2 x 3 tokens a frame, so that shares of tokens are uneven."""
GUIDED = (
    ("self-forcing", 24, (2, 4), 3.0),
    ("longlive", 24, (4, 6), 1.0),
    ("self-forcing", 24, (2, 2), 2.0),
    ("wan", 5, (4, 2), 3.0),
)
"""Likewise, where the branches of guidance are shared: MAGI-1's read each other."""
PAGES = 1000


def small_model() -> WanTransformer:
    return small_wan(CONFIG)


def requests(branches: int = 1) -> list[ade.Request]:
    """branches: parts that share those of guidance."""
    found = []
    for seed, (name, frames, size, scale) in enumerate(GUIDED if branches > 1 else STREAMS):
        prompt = torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
        asked = ade.Request(num_frames=frames, size=size, condition=prompt, seed=seed, guidance_scale=scale)
        found.append(systems.get(name).request(asked))
    return found


def engine(model: ade.models.VideoModel) -> ade.Engine:
    return ade.Engine(model, solver=ade.solvers.Euler(ade.FlowSchedule(5.0), 2), max_pages=PAGES)


def play(running: ade.Engine, branches: int = 1) -> list[torch.Tensor]:
    """All streams in one pass; one gets a new prompt on its way, one is forked, one is suspended and goes
    on."""
    first, second, third, fourth = (running.submit(asked) for asked in requests(branches))
    for _ in range(6):
        running.step()
    twin = first.fork(seed=17)
    second.set_condition(torch.ones(3, 10))
    third.suspend()
    running.step()
    third.resume()
    return [stream.result() for stream in (first, twin, second, third, fourth)]


def main(folder: Path, branches: int) -> None:
    dist.init_process_group("gloo")
    try:
        model = over_processes(small_model(), None, branches)
        shape = (model.spec.heads, model.spec.kv_heads)
        torch.save(
            {"made": play(engine(model), branches), "heads": shape}, folder / f"rank{dist.get_rank()}.pt"
        )
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    command_end.at_once(0)
