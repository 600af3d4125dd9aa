# SPDX-License-Identifier: Apache-2.0
"""The tensors behind the pages: one pool per model, one page id for all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine.arguments import integer
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.page_manager import PageManager
from ardiff_engine.models.spec import ModelSpec

PAGE_ROWS = (16, 32, 64, 80, 112, 128, 144)


def choose_page_rows(tokens_per_frame: int) -> int:
    """Rows per page with the least padding of a frame; among equals the largest, as fewer pages cost less."""
    tokens_per_frame = integer("tokens_per_frame", tokens_per_frame)
    return min(PAGE_ROWS, key=lambda rows: (-tokens_per_frame % rows, -rows))


def rows_of_pages(spec: ModelSpec, page_rows: int | None = None) -> int:
    """Rows per page of a pool for this network: given, or chosen for frames of the size it was trained on.

    Frames of any size take whole pages. ConfigError: rows that no kernel takes.
    """
    if page_rows is None:
        return choose_page_rows(spec.tokens())
    if page_rows not in PAGE_ROWS:
        raise ConfigError(f"page_rows: got {page_rows!r}, expected one of {PAGE_ROWS}.")
    return page_rows


@dataclass(frozen=True, slots=True)
class PagePool:
    """k, v: [layers, pages, heads, page_rows, head_dim]; a (page, head) tile is contiguous."""

    k: torch.Tensor
    v: torch.Tensor
    manager: PageManager

    @classmethod
    def allocate(
        cls, spec: ModelSpec, pages: int, page_rows: int, *, dtype: torch.dtype, device: torch.device
    ) -> PagePool:
        manager = PageManager(pages)
        shape = (spec.layers, pages, spec.kv_heads, page_rows, spec.head_dim)
        # Zeroed, not empty: rows beyond a frame's tokens are multiplied by probability 0, and 0 * NaN is NaN.
        return cls(
            torch.zeros(shape, dtype=dtype, device=device),
            torch.zeros(shape, dtype=dtype, device=device),
            manager,
        )

    @property
    def page_rows(self) -> int:
        return self.k.shape[3]

    @property
    def bytes_per_page(self) -> int:
        return 2 * self.k[:, 0].numel() * self.k.element_size()
