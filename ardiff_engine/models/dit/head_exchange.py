# SPDX-License-Identifier: Apache-2.0
"""Attention over several processes by heads (Ulysses, Jacobs et al. 2023, arXiv 2309.14509).

Every process has a share of the tokens for the layers that treat tokens alone, and a share of the heads for
attention. Before attention all tokens of our heads are collected, after it all heads of our tokens: two
all-to-alls, each of which sends (R - 1) / R of the numbers. Pages hold our heads alone, so that their pool is
split, and all processes share one page table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ardiff_engine.errors import ProcessLostError


@dataclass(frozen=True, slots=True)
class HeadExchange:
    """Of T tokens between the processes of a group; process r has the tokens bounds[r] .. bounds[r + 1] -
    1."""

    group: dist.ProcessGroup
    rank: int
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, group: dist.ProcessGroup, tokens: int) -> HeadExchange:
        """Shares that differ by one token at most."""
        size = group.size()
        return cls(group, group.rank(), tuple(tokens * r // size for r in range(size + 1)))

    def own(self, rows: Tensor) -> Tensor:
        """[T, ...] -> our rows."""
        return rows[self.bounds[self.rank] : self.bounds[self.rank + 1]]

    def to_heads(self, *parts: Tensor) -> Tensor:
        """Our tokens of all heads, each [t, heads, dim] -> all tokens of our heads, side by side: [T, heads
        of all parts / R · dim]."""
        size = self.group.size()
        ours = len(parts[0])
        # [R, t, heads / R of all parts, dim]: what each process gets.
        shares = [part.unflatten(1, (size, -1)).movedim(1, 0) for part in parts]
        sent = torch.cat(shares, dim=2).flatten(2).flatten(0, 1)
        got = sent.new_empty(self.bounds[-1], sent.shape[1])
        with _others():
            dist.all_to_all_single(got, sent.contiguous(), self._sizes(), [ours] * size, self.group)
        return got

    def to_tokens(self, rows: Tensor) -> Tensor:
        """All tokens of our heads [T, heads / R · dim] -> our tokens of all heads [t, heads · dim]."""
        size, ours = self.group.size(), self.bounds[self.rank + 1] - self.bounds[self.rank]
        got = rows.new_empty(size * ours, rows.shape[1])
        with _others():
            dist.all_to_all_single(got, rows.contiguous(), [ours] * size, self._sizes(), self.group)
        return got.unflatten(0, (size, ours)).movedim(0, 1).flatten(1)

    def collected(self, rows: Tensor) -> Tensor:
        """Our tokens [t, ...] -> all tokens [T, ...], the same in every process."""
        return torch.cat(gathered(rows, self._sizes(), self.group))

    def _sizes(self) -> list[int]:
        return [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]


def gathered(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> list[Tensor]:
    """Our rows [sizes[rank], ...] -> those of every process, the same in each."""
    # all_gather takes equal sizes only.
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    with _others():
        dist.all_gather(parts, padded, group)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


@contextlib.contextmanager
def _others() -> Iterator[None]:
    """ProcessLostError where they do not take part. One that ends closes its connections, which is noticed at
    once (gloo); one that hangs, after the timeout of the group."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0][:200]
        raise ProcessLostError(
            f"a process of the group has ended or does not answer ({said}). Its own message says why; start "
            "all of them again."
        ) from error
