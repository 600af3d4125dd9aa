# SPDX-License-Identifier: Apache-2.0
"""One of several processes that run a Wan together, the last of which ends in the middle; see
test_ulysses.py."""

from __future__ import annotations

import os
from dataclasses import replace

import torch.distributed as dist
from ulysses_worker import engine, requests, small_model

import ardiff_engine as ade
from ardiff_engine import command_end
from ardiff_engine.errors import ProcessLostError
from ardiff_engine.models.wan.ulysses import UlyssesWan

ENDED, LOST = 7, 5


def ends(stream: ade.Stream) -> None:
    if stream.ticks_done == 3 and dist.get_rank() == dist.get_world_size() - 1:
        os._exit(ENDED)


def main() -> int:
    dist.init_process_group("gloo")
    stream = engine(UlyssesWan(small_model())).submit(replace(requests()[0], on_step=ends))
    try:
        stream.result()
    except ProcessLostError:
        return LOST
    return 0


if __name__ == "__main__":
    command_end.at_once(main())
