# SPDX-License-Identifier: Apache-2.0
"""Rows of the page pool that become weighted sums of other rows: several frames told by one (ConvKV of
SoulX-LiveAct), tokens that are nearly the same told by one (TempCache).

    pages[l, row targets[n]] = sum over j of weights[l, j] * pages[l, row sources[n, j]]

A row of the pool is page · R + row of the page. K keeps the rotation that it carries: rows that stand at
different places are turned to one place before (`rotate_pages_`).

A row that stands for m others weighs as much as they did in attention with a bias of log m on its logits, a
`Run.bias` of a view, if they were alike.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import PageTableError, TensorError
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import indices, optional, writable
from ardiff_engine.ops.cuda_launch import address, error_bits, launch_for
from ardiff_engine.ops.dispatch import watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels


def pool_pages_(
    pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> None:
    """Writes weighted sums of rows into other rows, in all layers. Sums are float32, in the order of j.

    Args:
        pages: K or V of the pool, [layers, P, H, R, d], a page dense; written.
        sources: int64 or int32 [n, taps], rows that are read; -1: none.
        targets: int64 or int32 [n], rows that are written: distinct, none of them a source.
        weights: float32 [layers, taps, H, d], or [1, taps, H, d] for all layers alike. None: the mean of the
            sources that are there, and 0 where none is.

    Raises:
        TensorError: a wrong shape, dtype, device or stride.
        PageTableError: a row outside the pool, or targets that repeat or are read (read on the CPU only).
            Nothing is written then.
    """
    pages, weights = writable("pages", pages), optional("weights", weights)
    sources, targets = indices("sources", sources), indices("targets", targets)
    _check(pages, sources, targets, weights)
    if watched(pages, sources, targets, weights):
        torch.ops.ardiff.pool_pages_(pages, sources, targets, weights)
    else:
        _run(pages, sources, targets, weights)


@without_autocast
def reference_pool_pages_(
    pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> None:
    """The specification in PyTorch."""
    size, wide = pages.shape[3], torch.promote_types(pages.dtype, torch.float32)
    there = sources >= 0
    read = sources.clamp_min(0)
    rows = pages.transpose(2, 3)[:, read // size, read % size].to(wide)  # [layers, n, taps, H, d]
    if weights is None:
        share = there.to(wide) / there.sum(dim=1, keepdim=True).clamp_min(1)
        scale = share[None, :, :, None, None]
    else:
        scale = weights.to(wide)[:, None]
    summed = torch.where(there[None, :, :, None, None], scale * rows, 0.0).sum(dim=2)
    pages.transpose(2, 3)[:, targets // size, targets % size] = summed.to(pages.dtype)


def _check(
    pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> None:
    if pages.dim() != 5 or not pages[0:1, 0:1].is_contiguous() or not pages.is_floating_point():
        raise TensorError(
            f"pool_pages_: pages {pages.dtype} {list(pages.shape)} of strides {pages.stride()}; expected "
            "[layers, P, H, R, d] with dense pages"
        )
    fits = sources.dim() == 2 and targets.shape == sources.shape[:1]
    whole = sources.dtype == targets.dtype == torch.int64
    if not fits or not whole or {sources.device, targets.device} != {pages.device}:
        raise TensorError(
            f"pool_pages_: sources {sources.dtype} {list(sources.shape)} on {sources.device} and targets "
            f"{targets.dtype} {list(targets.shape)} on {targets.device}; expected integers [n, taps] and [n] "
            f"on {pages.device}"
        )
    if weights is None:
        return
    layers, _, heads, _, dim = pages.shape
    shapes = [(own, sources.shape[1], heads, dim) for own in (layers, 1)]
    if weights.shape not in shapes or weights.dtype != torch.float32 or weights.device != pages.device:
        raise TensorError(
            f"pool_pages_: weights {weights.dtype} {list(weights.shape)} on {weights.device}; expected "
            f"float32 {list(shapes[0])} or {list(shapes[1])} on {pages.device}"
        )


def _check_rows(pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    if pages.device.type != "cpu":
        return
    rows = pages.shape[1] * pages.shape[3]
    for name, ids, least in (("sources", sources, -1), ("targets", targets, 0)):
        if ids.numel() and not (least <= int(ids.min()) and int(ids.max()) < rows):
            raise PageTableError(
                f"pool_pages_: {name} from {int(ids.min())} to {int(ids.max())}, expected rows from {least} "
                f"to {rows - 1}"
            )
    if targets.unique().numel() != targets.numel() or bool(
        torch.isin(targets.contiguous(), sources.contiguous()).any()
    ):
        raise PageTableError("pool_pages_: targets repeat, or are read as well; write to other rows.")


def _run(
    pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> None:
    _check_rows(pages, sources, targets)
    backend = choose("pool_pages_", pages).name
    if backend == "triton":
        triton_kernel("pool_pages_")(pages, sources, targets, weights)
        return
    if backend == "reference":
        reference_pool_pages_(pages, sources, targets, weights)
        return
    sources, targets = sources.contiguous(), targets.contiguous()
    weights = None if weights is None else weights.contiguous()
    layers, num_pages, heads, rows, dim = pages.shape
    arguments = (
        pages.data_ptr(),
        sources.data_ptr(),
        targets.data_ptr(),
        address(weights),
        *sources.shape,
        layers,
        num_pages,
        heads,
        rows,
        dim,
        pages.stride(0),
        pages.stride(1),
        0 if weights is None or weights.shape[0] == 1 else weights.stride(0),
    )
    if backend == "cpu":
        kernels().pool_pages(*arguments)
    else:
        launch_for("pool_pages", pages, *arguments, error_bits(pages.device).data_ptr())


@torch.library.custom_op("ardiff::pool_pages_", mutates_args=("pages",))
def _op(
    pages: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> None:
    _run(pages, sources, targets, weights)
