# SPDX-License-Identifier: Apache-2.0
"""Ragged cases of frame attention, with softmax attention in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ardiff_engine._native import native
from ardiff_engine.ops.frame_table import FrameTable

NAN = float("nan")
ISAS = native().build_info()["isas"] if native() is not None else ["not-built"]


@dataclass
class Case:
    """Plain lists, from which the table, the pools and the oracle are made."""

    tokens: list[list[int]]
    pages: list[list[int]]
    valid: list[list[int]]
    seen: list[list[int]]
    bias: list[list[float]] | None = None
    heads: int = 4
    kv_heads: int = 4
    dim: int = 16
    rows: int = 13
    pool: int = 12
    seed: int = 0

    def table(self) -> FrameTable:
        return FrameTable.build(self.tokens, self.pages, self.valid, self.seen, self.bias)

    def entries(self) -> list[tuple[int, int]]:
        lists = zip(self.pages, self.valid, strict=True)
        return [entry for pages, valid in lists for entry in zip(pages, valid, strict=True)]

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q and pools; whatever no list names is NaN."""
        random = torch.Generator().manual_seed(self.seed)
        q = torch.randn(sum(map(sum, self.tokens)), self.heads, self.dim, generator=random)
        k = torch.full((self.pool, self.kv_heads, self.rows, self.dim), NAN)
        v = k.clone()
        for page in sorted({p for row in self.pages for p in row}):
            n = max(n for p, n in self.entries() if p == page)
            k[page, :, :n] = torch.randn(self.kv_heads, n, self.dim, generator=random)
            v[page, :, :n] = torch.randn(self.kv_heads, n, self.dim, generator=random)
        return q, k, v

    def oracle(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token by token in float64; differentiable by plain autograd."""
        q, k, v = (x if x.dtype == torch.float64 else x.double() for x in (q, k, v))
        scale = self.dim**-0.5 if scale is None else scale
        outputs, sums, at = [], [], 0
        share = self.heads // self.kv_heads
        for g, frames in enumerate(self.tokens):
            for count, seen in zip(frames, self.seen[g], strict=True):
                queries, at = q[at : at + count], at + count
                listed = list(zip(self.pages[g], self.valid[g], strict=True))[:seen]
                keys = [k[p, :, :n] for p, n in listed if n] or [k[0, :, :0]]
                values = [v[p, :, :n] for p, n in listed if n] or [v[0, :, :0]]
                bias: list[float] = []
                for (_, n), b in zip(listed, self.bias[g] if self.bias else (), strict=False):
                    bias += [b] * n
                key = torch.cat(keys, 1).repeat_interleave(share, 0)
                value = torch.cat(values, 1).repeat_interleave(share, 0)
                logits = scale * torch.einsum("thd,hnd->htn", queries, key)
                if bias:
                    logits = logits + torch.tensor(bias, dtype=torch.float64)
                outputs.append(torch.einsum("htn,hnd->thd", torch.softmax(logits, -1), value))
                sums.append(torch.logsumexp(logits, -1).T)
        return torch.cat(outputs), torch.cat(sums)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


RAGGED = Case(
    tokens=[[5, 9, 1], [33, 2], [1]],
    pages=[[3, 7, 1, 10], [7, 2], [9]],
    valid=[[13, 12, 13, 5], [12, 13], [1]],
    seen=[[1, 2, 4], [2, 1], [1]],
)
CASES = {
    "ragged": RAGGED,
    "gqa": replace(RAGGED, heads=6, kv_heads=2),
    "bias": replace(RAGGED, bias=[[0.0, 0.5, -2.0, 1.0], [0.0, 3.0], [-1.0]]),
    "one-token-frames": Case([[1] * 9], [list(range(9))], [[1] * 9], [list(range(1, 10))]),
    "block-causal": Case([[8] * 6], [[5, 1, 4, 0, 3, 2]], [[8] * 6], [[1, 2, 3, 4, 5, 6]], rows=8, pool=6),
    "out-of-order-views": Case([[7, 7, 7]], [[0, 1, 2]], [[13, 13, 3]], [[3, 1, 2]]),
    "page-listed-twice": Case([[4]], [[6, 6, 1]], [[13, 4, 2]], [[3]]),
    "long": Case([[70]], [[8, 0]], [[157, 200]], [[2]], rows=211),
    "groups-share-pages-across-others": Case(
        [[5], [4, 40], [3], [2]],
        [[0, 1], [2, 5], [1, 3], [3, 4]],
        [[13, 9], [13, 2], [13, 4], [6, 1]],
        [[2], [1, 2], [2], [2]],
    ),
    "some-empty-pages": Case([[3, 3]], [[0, 1, 2]], [[0, 13, 0]], [[2, 3]]),
}
