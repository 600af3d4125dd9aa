# SPDX-License-Identifier: Apache-2.0
"""One Wan over several processes, each with a share of the heads and of their pages (`dit.head_exchange`).

    torchrun --nproc-per-node 2 examples/wan_processes.py FOLDER "a cat walks on the beach"

Every process builds the same engine over its `UlyssesWan` and makes the same calls in the same order: engines
decide by requests alone, so all of them decide alike, and every process gets the whole result.

A process that ends takes the others with it: their streams fail with ProcessLostError, with gloo at once. One
that hangs does so after the timeout of the group, which `init_process_group(timeout=...)` sets.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.branch_shares import BranchShares
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.block_ops import run_blocks
from ardiff_engine.models.dit.block_spec import BlockSpec, by_rows
from ardiff_engine.models.dit.head_exchange import HeadExchange
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.wan.video import PagedWan
from ardiff_engine.models.wrapped import Wrapped
from ardiff_engine.ops.backend import on_native_cpu


class UlyssesWan(Wrapped[PagedWan]):
    """The part of a Wan that this process runs. Weights are whole in every process; pages and attention are
    split. In float32 on the CPU the result has the same bits with any number of processes; beside that of the
    model alone, which computes a pass as one call, it differs by rounding.

    Args:
        model: the same weights in every process, on its own device.
        group: NCCL for GPUs, gloo for CPUs; None: all processes.

    Raises:
        ConfigError: heads that the processes cannot share evenly; no processes that know each other.
    """

    def __init__(self, model: PagedWan, group: dist.ProcessGroup | None = None) -> None:
        group = group or _world()
        heads, size = model.spec.heads, group.size()
        if heads % size:
            fits = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ConfigError(
                f"UlyssesWan: {heads} heads for {size} processes, expected one of {fits} processes."
            )
        share = heads // size
        # Views of single heads or layers would be those of one process. Collectives are in no CUDA graph.
        spec = replace(
            model.spec,
            heads=share,
            kv_heads=share,
            views_per_layer=False,
            views_per_head=False,
            reads_back=True,
        )
        super().__init__(model, spec)
        self._group = group
        self._blocks: list[BlockSpec] | None = None
        self._heads = slice(share * group.rank(), share * (group.rank() + 1))

    def freeze(self) -> None:
        """On the CPU in float32 packed copies of the weights are made."""
        specs = self.model.block_specs()
        packs = self.dtype == torch.float32 and on_native_cpu(next(self.model.parameters()))
        self._blocks = [by_rows(spec) for spec in specs] if packs else specs

    def write_condition(self, condition: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        """K and V of our heads."""
        self.model.write_condition(condition, slots, k_pages, v_pages, self._heads)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        whole = self.model.footprint(tokens, timesteps)
        copies = self.dtype == torch.float32 and on_native_cpu(next(self.model.parameters()))
        return replace(whole, weights=whole.weights * 2) if copies else whole

    @torch.no_grad()
    def __call__(self, x: Tensor, cells: CellBatch, tables: Tables, condition: Tensor | None) -> Tensor:
        exchange = HeadExchange.of(self._group, len(x))
        modulation, head = tables.parts
        inputs = {name: exchange.own(rows) for name, rows in cells.inputs.items()}
        h = self.model.entered(exchange.own(x), inputs)
        blocks = self._blocks or self.model.block_specs()
        h = run_blocks(blocks, h, modulation, cells, cells.positions, self.model.frequencies, exchange)
        return exchange.collected(self.model.predicted(h, head, exchange.own(cells.frame_ids)))


def over_processes(model: PagedWan, group: dist.ProcessGroup | None, branches: int) -> VideoModel:
    """Over all processes of a group (None: of the program), in `branches` parts that share the branches of
    guidance; the processes of each part share the heads. ConfigError: they do not divide so."""
    group = group or _world()
    size = group.size()
    if branches < 1 or size % branches:
        fits = [n for n in range(1, size + 1) if size % n == 0]
        raise ConfigError(f"branches: got {branches} for {size} processes, expected one of {fits}.")
    if branches == 1:
        return UlyssesWan(model, group)
    ranks = torch.tensor(dist.get_process_group_ranks(group)).reshape(branches, -1)
    # Every process makes all groups, in the same order.
    of_heads = [dist.new_group(row.tolist()) for row in ranks]
    of_branches = [dist.new_group(column.tolist()) for column in ranks.T]
    part, place = divmod(group.rank(), size // branches)
    own = UlyssesWan(model, of_heads[part]) if size > branches else model
    return BranchShares(own, of_branches[place])


def _world() -> dist.ProcessGroup:
    if not dist.is_available() or not dist.is_initialized():
        raise ConfigError(
            "UlyssesWan: no process group. Start the program with torchrun and call "
            "torch.distributed.init_process_group() first."
        )
    assert dist.group.WORLD is not None
    return dist.group.WORLD
