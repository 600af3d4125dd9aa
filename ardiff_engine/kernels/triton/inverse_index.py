# SPDX-License-Identifier: Apache-2.0
"""Who uses row i? The inverse of an index list, so that a gradient is summed by one program in a fixed order
instead of by atomics in an order that changes from run to run."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class InverseIndex:
    """order[offsets[i] : offsets[i + 1]] are the places, rising, at which the list holds i."""

    order: torch.Tensor
    offsets: torch.Tensor


class InverseIndexCache:
    """One inverse per list and size, kept as long as the list: a table is shared by all layers of a model.

    Built on the list's device, without a synchronisation, and again for another stream: what was queued on
    one stream need not have run yet when another one reads it.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], tuple[int, int, int], InverseIndex]] = {}

    def get(self, ids: torch.Tensor, size: int) -> InverseIndex:
        """The inverse of `ids` with values in 0 .. size - 1; other values are in no list."""
        # A replayed graph must see the list's values of its own time; inference tensors do not count edits.
        if ids.is_inference() or (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
            return invert(ids, size)
        stream = torch.cuda.current_stream(ids.device).cuda_stream if ids.is_cuda else 0
        key, state = id(ids), (ids._version, size, stream)
        kept = self._kept.get(key)
        if kept is not None and kept[0]() is ids and kept[1] == state:
            return kept[2]
        inverse = invert(ids, size)
        forget = weakref.ref(ids, lambda _: self._kept.pop(key, None))
        self._kept[key] = (forget, state, inverse)
        return inverse


def invert(ids: torch.Tensor, size: int) -> InverseIndex:
    """The inverse of `ids`, int32, on its device."""
    values, order = torch.sort(ids, stable=True)
    bounds = torch.arange(size + 1, dtype=ids.dtype, device=ids.device)
    return InverseIndex(order.to(torch.int32), torch.searchsorted(values, bounds, out_int32=True))
