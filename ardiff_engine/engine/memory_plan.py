# SPDX-License-Identifier: Apache-2.0
"""How much memory an engine will take, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine import arguments
from ardiff_engine.available_memory import available_memory
from ardiff_engine.codec.protocol import Codec
from ardiff_engine.engine.admission import admit, check_model
from ardiff_engine.engine.decoding import check_codec, decoder_bytes
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import Tracks, tracks_of
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.memory import MemoryPolicy, RecomputedWindow, rows_of_pages
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Rule

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes for `streams` videos at a time.

    weights_bytes: on the CPU with the packed copies of the linear layers. workspace_bytes: of the largest
        pass, estimated from above. pages: also for K and V of conditions; streams with the same cross one
        share it, and then hold fewer. decoders_bytes: state of the codec's decoders.
    """

    streams: int
    pages_per_stream: int
    bytes_per_page: int
    weights_bytes: int
    tables_bytes: int
    workspace_bytes: int
    decoders_bytes: int = 0

    @property
    def pages(self) -> int:
        return self.streams * self.pages_per_stream

    @property
    def pages_bytes(self) -> int:
        return self.pages * self.bytes_per_page

    @property
    def total_bytes(self) -> int:
        fixed = self.weights_bytes + self.tables_bytes + self.decoders_bytes
        return fixed + self.pages_bytes + self.workspace_bytes

    def __str__(self) -> str:
        rows = [
            ("weights", self.weights_bytes, ""),
            ("tables", self.tables_bytes, ""),
            ("pages", self.pages_bytes, f"{self.streams} streams x {self.pages_per_stream} pages"),
            ("workspace", self.workspace_bytes, "largest pass, all streams together"),
            ("total", self.total_bytes, f"max_pages={self.pages}"),
        ]
        if self.decoders_bytes:
            rows.insert(-1, ("decoders", self.decoders_bytes, "state of the codec's decoders"))
        return "\n".join(f"{name:<18} {size / MIB:10.1f} MiB  {note}".rstrip() for name, size, note in rows)


def memory_plan(
    model: VideoModel,
    *,
    solver: Tracks,
    memory: MemoryPolicy | None = None,
    request: Request | None = None,
    streams: int = 1,
    page_rows: int | None = None,
    plan: Rule | None = None,
    codec: Codec | None = None,
) -> MemoryPlan:
    """Weights, pages and workspace for `streams` videos like `request` at a time; print it.

    The rest is as in Engine. Nothing is allocated.
    """
    if arguments.integer("streams", streams) < 1:
        raise ConfigError(explain("streams", got=streams, expected=">= 1", fix="Count videos at a time."))
    check_model(model)
    spec = model.spec
    steps = tuple(own.num_steps for own in tracks_of(solver))
    rows = rows_of_pages(spec, page_rows)
    request = Request() if request is None else request
    memory = RecomputedWindow(spec.num_frames) if memory is None else memory
    admission = admit(request, spec, memory, steps, rows, plan)
    branches = len(admission.weights)
    moves = admission.plan
    forgets = memory.network(spec).forgets
    live = moves.max_live + moves.longest_block if forgets else memory.most_frames(moves)
    tokens = streams * branches * (live * spec.tokens(request.size) + spec.context_tokens)
    footprint = model.footprint(tokens, sum(steps) + 2 * len(steps))
    return MemoryPlan(
        streams=streams,
        pages_per_stream=admission.need.most,
        bytes_per_page=bytes_per_page(spec, rows, model.dtype.itemsize),
        weights_bytes=footprint.weights,
        tables_bytes=footprint.tables,
        workspace_bytes=footprint.workspace,
        decoders_bytes=streams * decoder_bytes(check_codec(codec, model), model, request.size),
    )


def bytes_per_page(spec: ModelSpec, page_rows: int, item: int) -> int:
    """K and V of one page in all layers."""
    return 2 * spec.layers * spec.kv_heads * page_rows * spec.head_dim * item


def pages_for_share(share: float, spec: ModelSpec, page_rows: int, item: int, device: torch.device) -> int:
    """Pages that fit in that share of the memory that is free on the device now."""
    if not 0 < share < 1:
        raise ConfigError(
            explain(
                "max_pages",
                got=share,
                expected="a number of pages, or a share of the free memory between 0 and 1",
                fix="max_pages=4096 or max_pages=0.8.",
            )
        )
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory()
    return int(share * free) // bytes_per_page(spec, page_rows, item)
