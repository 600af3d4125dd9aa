# SPDX-License-Identifier: Apache-2.0
"""Small models, and cells of a pass for them."""

from __future__ import annotations

import pytest
import torch
from helpers.positions import token_positions
from native_isa import isa  # noqa: F401

from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer, CellBatch
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.ops import FrameTable

ROPE = ARDiffusionConfig(width=48, depth=2, heads=3, tokens_per_frame=5, context_tokens=7, channels=4)
PAGES, ROWS = 9, 8


def model_of(config: ARDiffusionConfig) -> ARDiffusionTransformer:
    torch.manual_seed(0)
    model = ARDiffusionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter.shape[-1] ** -0.5)
    model.freeze()
    return model


def cells(model: ARDiffusionTransformer, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Context and three frames of one stream, the last two in one group; page 0 is old."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    shape = (config.depth, PAGES, config.heads, ROWS, config.head_dim)
    k, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    pages = [3, 8, 1, 5]
    tokens = [config.context_tokens] + [config.tokens_per_frame] * 3
    slots = torch.cat([page * ROWS + torch.arange(n) for page, n in zip(pages, tokens, strict=True)])
    table = FrameTable.build(
        [[7], [5], [5, 5]],
        [[3], [3, 0, 8], [3, 0, 8, 1, 5]],
        [[7], [7, 5, 5], [7, 5, 5, 5, 5]],
        [[1], [3], [4, 5]],
    )
    batch = CellBatch(
        num_contexts=1,
        slots=slots,
        positions=token_positions([1, 2, 3], 5),
        frame_ids=torch.repeat_interleave(
            torch.tensor([0, 2, 3, 1], dtype=torch.int32), torch.tensor(tokens)
        ),
        table=table,
        k_pages=k,
        v_pages=v,
    )
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64).to(dtype)
    condition = torch.randn(1, 7, config.context_dim, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        tables = model.tables(torch.tensor([900.0, 400.0, 30.0], dtype=dtype))
    return x, batch, tables, condition


def run(model: ARDiffusionTransformer, dtype: torch.dtype) -> tuple[torch.Tensor, CellBatch]:
    x, batch, tables, condition = cells(model, dtype)
    with torch.no_grad():
        return model(x, batch, tables, condition), batch


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    native = NativeBlocks.run
    monkeypatch.setattr(NativeBlocks, "run", lambda self, *rest: calls.append(1) or native(self, *rest))
    return calls
