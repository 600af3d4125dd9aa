# SPDX-License-Identifier: Apache-2.0
"""A Wan over several processes, by heads: the same bits with any number of them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import wan_folder
from helpers.processes import start_together
from ulysses_lost_worker import ENDED, LOST
from ulysses_worker import engine, play, small_model

import ardiff_engine as ade
from ardiff_engine import read_video
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.branch_shares import BranchShares
from ardiff_engine.models.dit.head_exchange import HeadExchange
from ardiff_engine.models.wan.ulysses import UlyssesWan, over_processes

HERE = Path(__file__).parent


@pytest.fixture
def one_process(tmp_path: Path) -> object:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _together(processes: int, *command: object, folder: Path) -> str:
    """What the first one printed."""
    ends = start_together(processes, [sys.executable, *map(str, command)], folder)
    assert [end.code for end in ends] == [0] * processes, ends
    return ends[0].printed


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_make_what_one_makes(processes: int, tmp_path: Path) -> None:
    """Streams of four systems and sizes in one pass, guided, with a new prompt, a fork and a pause on the
    way."""
    alone = play(engine(UlyssesWan(small_model())))
    _together(processes, HERE / "ulysses_worker.py", tmp_path, 1, folder=tmp_path)
    _same_in_all(tmp_path, processes, alone, heads=4 // processes)


def test_processes_that_share_the_branches_make_what_the_model_makes(tmp_path: Path) -> None:
    """Streams with and without guidance in one pass, of different sizes: to the bit."""
    alone = play(engine(small_model()), branches=2)
    _together(2, HERE / "ulysses_worker.py", tmp_path, 2, folder=tmp_path)
    _same_in_all(tmp_path, 2, alone, heads=4)


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_grid_of_branches_and_heads_makes_what_one_process_makes(tmp_path: Path) -> None:
    alone = play(engine(UlyssesWan(small_model())), branches=2)
    _together(4, HERE / "ulysses_worker.py", tmp_path, 2, folder=tmp_path)
    _same_in_all(tmp_path, 4, alone, heads=2)


def _same_in_all(folder: Path, processes: int, alone: list[torch.Tensor], heads: int) -> None:
    for rank in range(processes):
        found = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        assert found["heads"] == (heads, heads)
        for one, other in zip(alone, found["made"], strict=True):
            assert torch.isfinite(one).all() and torch.equal(one, other)


def test_a_process_that_ends_takes_the_others_with_it(tmp_path: Path) -> None:
    """They end by a typed error, and wait for nobody."""
    ended = start_together(2, [sys.executable, str(HERE / "ulysses_lost_worker.py"), "ends"], tmp_path)
    assert [end.code for end in ended] == [LOST, ENDED], ended


@pytest.mark.skipif(sys.platform != "linux", reason="a stopped process is seen in Linux's /proc")
def test_a_process_that_hangs_is_waited_for_until_the_timeout_of_the_group(tmp_path: Path) -> None:
    """Then the others end by the same typed error; here the first of them ends the one that is stopped."""
    ended = start_together(2, [sys.executable, str(HERE / "ulysses_lost_worker.py"), "hangs"], tmp_path)
    assert [end.code for end in ended] == [LOST, -signal.SIGKILL], ended
    assert "does not answer" in ended[0].printed


@pytest.mark.slow
def test_a_pipeline_over_processes_makes_what_one_makes(tmp_path: Path) -> None:
    model = wan_folder.write_folder(tmp_path / "model")
    sizes = ["--frames", 9, "--size", 32, 48, "--system", "wan", "--out"]
    example = HERE.parent / "examples" / "wan_processes.py"
    said = _together(2, example, model, "a cat", *sizes, tmp_path / "two", folder=tmp_path)
    assert "2 processes" in said
    pipe = ade.Pipeline.from_pretrained(model, system="wan")
    alone = pipe("a cat", 9, size=(32, 48), seed=0, progress=False).frames[0].numpy()
    two = read_video(tmp_path / "two")
    assert two.shape == alone.shape and np.abs(two.astype(int) - alone).max() <= 1


@pytest.mark.usefixtures("one_process")
def test_a_pipeline_over_processes_asks_for_a_seed(tmp_path: Path) -> None:
    pipe = ade.Pipeline.from_pretrained(wan_folder.write_folder(tmp_path / "model"), system="wan")
    alone = pipe("a cat", 5, size=(32, 48), seed=3, progress=False)
    assert pipe.over_processes() is pipe
    with pytest.raises(ConfigError, match="seed"):
        pipe("a cat", 5, size=(32, 48), progress=False)
    torch.testing.assert_close(
        pipe("a cat", 5, size=(32, 48), seed=3, progress=False).latents, alone.latents, rtol=1e-4, atol=1e-4
    )


@pytest.mark.usefixtures("one_process")
def test_one_process_is_the_plain_model() -> None:
    model = small_model()
    for one, other in zip(play(engine(model)), play(engine(UlyssesWan(model))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("one_process")
def test_exchange_of_one_process_keeps_rows() -> None:
    assert dist.group.WORLD is not None
    exchange = HeadExchange.of(dist.group.WORLD, 5)
    q, k = torch.randn(5, 4, 3), torch.randn(5, 2, 3)
    assert torch.equal(exchange.to_heads(q, k), torch.cat([q.flatten(1), k.flatten(1)], dim=1))
    assert torch.equal(exchange.to_tokens(q.flatten(1)), q.flatten(1))
    assert torch.equal(exchange.collected(q), q)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        UlyssesWan(small_model())

    class Three:
        def size(self) -> int:
            return 3

    with pytest.raises(ConfigError, match="4 heads"):
        UlyssesWan(small_model(), Three())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got 2 for 3 processes, expected one of \[1, 3\]"):
        over_processes(small_model(), Three(), 2)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_process")
def test_branches_that_read_each_other_are_not_put_apart() -> None:
    assert dist.group.WORLD is not None
    apart = engine(BranchShares(small_model(), dist.group.WORLD))
    text = torch.ones(3, 10)
    reads = [ade.Branch(text, 3.0), ade.Branch("null", -2.0, writes=False)]
    asked = ade.Request(num_frames=3, size=(2, 2), plan=ade.plan.blocks(3), branches=reads)
    with pytest.raises(ConfigError, match="different processes"):
        apart.submit(asked)
    assert apart.stats().pages_held == 0
