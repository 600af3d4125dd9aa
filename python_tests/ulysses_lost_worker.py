# SPDX-License-Identifier: Apache-2.0
"""One of two processes that run a Wan together, the last of which ends or hangs in the middle:
`ulysses_lost_worker.py ends|hangs`; see test_ulysses.py."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from helpers.waiting import eventually
from ulysses_worker import engine, requests, small_model

import ardiff_engine as ade
from ardiff_engine import command_end
from ardiff_engine.errors import ProcessLostError
from ardiff_engine.models.wan.ulysses import UlyssesWan

ENDED, LOST = 7, 5


def ends(stream: ade.Stream, _last: int) -> None:
    if stream.ticks_done == 3 and dist.get_rank() == 1:
        os._exit(ENDED)


def hangs(stream: ade.Stream, last: int) -> None:
    """The other one waits with it for its whole timeout, which is short from then on."""
    if stream.ticks_done == 3 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif stream.ticks_done == 3:
        state = Path(f"/proc/{last}/stat")
        assert eventually(lambda: state.read_text().rpartition(") ")[2].startswith("T"))
        assert dist.group.WORLD is not None
        dist.group.WORLD.set_timeout(timedelta(seconds=1))


def main(strikes: str) -> int:
    dist.init_process_group("gloo")
    process = torch.tensor([os.getpid()])
    dist.broadcast(process, 1)
    last, struck = int(process), {"ends": ends, "hangs": hangs}[strikes]
    asked = replace(requests()[0], on_step=lambda stream: struck(stream, last))
    try:
        engine(UlyssesWan(small_model())).submit(asked).result()
    except ProcessLostError as error:
        print(error, flush=True)
        if struck is hangs:
            os.kill(last, signal.SIGKILL)
        return LOST
    return 0


if __name__ == "__main__":
    command_end.at_once(main(sys.argv[1]))
