# SPDX-License-Identifier: Apache-2.0
"""Housekeeping of the page pool: copying pages (forks) and moving pages to another position (sinks, pinned
memory).

Because RoPE composes, K rotated at position p becomes K at position p + delta by rotating it by delta once
more:

    copy_pages_    k[:, dst] = k[:, src], v[:, dst] = v[:, src]
    rotate_pages_  (k[2j], k[2j+1]) -> rotated by delta * frequencies[j], in every row of the page

Angles are computed and reduced in float64.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import PageTableError, TensorError, explain
from ardiff_engine.ops.backend import choose, triton_kernel
from ardiff_engine.ops.checks import indices, optional, tensor, writable
from ardiff_engine.ops.cuda_launch import address, error_bits, launch, launch_for
from ardiff_engine.ops.dispatch import watched, without_autocast
from ardiff_engine.ops.native_kernels import kernels
from ardiff_engine.ops.norm_rope import rotate
from ardiff_engine.ops.norm_rope_checks import check_frequencies

_CUDA_HEAD_DIM = 512  # csrc/cuda/rope.cuh keeps the sines of a position in shared memory


def copy_pages_(k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copies page src[i] to page dst[i] in all layers, bit for bit.

    Args:
        k_pages, v_pages: [layers, P, H, R, d], same strides, a page dense; written.
        src: int64 or int32 [n], pages that are read.
        dst: likewise, pages that are written: distinct, none of them in src.

    Raises:
        TensorError: a wrong shape, dtype, device or stride.
        PageTableError: a page outside the pool, or overlapping copies (read on the CPU only). Nothing is
            written then.
    """
    k_pages, v_pages = writable("k_pages", k_pages), writable("v_pages", v_pages)
    src, dst = indices("src", src), indices("dst", dst)
    _check_pool("k_pages", k_pages, k_pages)
    _check_pool("v_pages", v_pages, k_pages)
    _check_ids("src", src, k_pages, src)
    _check_ids("dst", dst, k_pages, src)
    if watched(k_pages, v_pages, src, dst):
        torch.ops.ardiff.copy_pages_(k_pages, v_pages, src, dst)
    else:
        _copy(k_pages, v_pages, src, dst)


def rotate_pages_(
    k_pages: torch.Tensor,
    pages: torch.Tensor,
    deltas: torch.Tensor,
    frequencies: torch.Tensor,
    *,
    source: torch.Tensor | None = None,
) -> None:
    """Rotates K of page pages[i] by deltas[i] positions, in all layers.

    Args:
        k_pages: [layers, P, H, R, d], a page dense; written.
        pages: int64 or int32 [n], distinct.
        deltas: int64 or int32 [n]; negative ones turn back.
        frequencies: float64 [d / 2].
        source: [layers, n, H, R, d]; page pages[i] becomes the rotation of source[:, i]. Keep an unrotated
            copy there, and repeated moves do not add up rounding errors. None: the pages themselves.

    Raises:
        TensorError: a wrong shape, dtype, device or stride.
        PageTableError: a page outside the pool or named twice (read on the CPU only). Nothing is written
            then.
    """
    k_pages = writable("k_pages", k_pages)
    pages, deltas = indices("pages", pages), indices("deltas", deltas)
    frequencies, source = tensor("frequencies", frequencies), optional("source", source)
    _check_pool("k_pages", k_pages, k_pages)
    _check_ids("pages", pages, k_pages, pages)
    _check_ids("deltas", deltas, k_pages, pages)
    check_frequencies(frequencies, k_pages.shape[4], k_pages.device)
    if source is not None:
        layers, _, *page = k_pages.shape
        fits = source.shape == (layers, pages.shape[0], *page) and source.dtype == k_pages.dtype
        if not fits or source.device != k_pages.device:
            raise TensorError(
                explain(
                    "source",
                    got=f"{source.dtype} {list(source.shape)} on {source.device}",
                    expected=f"{k_pages.dtype} {[layers, pages.shape[0], *page]} on {k_pages.device}",
                    fix="Pass the unrotated K of the pages, in their order.",
                )
            )
    if watched(k_pages, pages, deltas, frequencies, source):
        torch.ops.ardiff.rotate_pages_(k_pages, pages, deltas, frequencies, source)
    else:
        _rotate(k_pages, pages, deltas, frequencies, source)


@without_autocast
def reference_rotate_pages_(
    k_pages: torch.Tensor,
    pages: torch.Tensor,
    deltas: torch.Tensor,
    frequencies: torch.Tensor,
    source: torch.Tensor | None,
) -> None:
    """The specification in PyTorch."""
    wide = torch.promote_types(k_pages.dtype, torch.float32)
    rows = (k_pages[:, pages] if source is None else source).to(wide)
    angle = (deltas.double()[:, None] * frequencies.double())[:, None, None]
    k_pages[:, pages] = rotate(rows, angle.cos().to(wide), angle.sin().to(wide)).to(k_pages.dtype)


def _check_pool(name: str, pages: torch.Tensor, like: torch.Tensor) -> None:
    dense = pages.dim() == 5 and pages[0:1, 0:1].is_contiguous()
    alike = pages.shape == like.shape and pages.stride() == like.stride() and pages.dtype == like.dtype
    if not dense or not alike or pages.device != like.device:
        raise TensorError(
            explain(
                name,
                got=f"{pages.dtype} {list(pages.shape)} on {pages.device}, strides {pages.stride()}",
                expected=f"[layers, P, H, R, d] with dense pages on {like.device}, k_pages and v_pages alike",
                fix="Pass the tensors of the page pool.",
            )
        )


def _check_ids(name: str, ids: torch.Tensor, pool: torch.Tensor, like: torch.Tensor) -> None:
    if ids.dtype != torch.int64 or ids.dim() != 1 or ids.shape != like.shape or ids.device != pool.device:
        raise TensorError(
            explain(
                name,
                got=f"{ids.dtype} {list(ids.shape)} on {ids.device}",
                expected=f"torch.int64 {list(like.shape)} (one dimension) on {pool.device}",
                fix="Pass one entry per page.",
            )
        )


def _check_pages(name: str, ids: torch.Tensor, pages: int, *, distinct: bool = False) -> None:
    if ids.device.type != "cpu":
        return
    listed = ids.tolist()
    for page in listed:
        if not 0 <= page < pages:
            raise PageTableError(
                explain(name, got=page, expected=f"0..{pages - 1}", fix="Pass page ids of this pool.")
            )
    if distinct and len(set(listed)) != len(listed):
        raise PageTableError(
            explain(name, got="a page twice", expected="distinct pages", fix="Merge the requests.")
        )


def _check_copy(src: torch.Tensor, dst: torch.Tensor, pages: int) -> None:
    _check_pages("src", src, pages)
    _check_pages("dst", dst, pages, distinct=True)
    if src.device.type == "cpu" and not set(src.tolist()).isdisjoint(dst.tolist()):
        raise PageTableError(
            explain(
                "dst", got="a page that is also read", expected="pages outside src", fix="Copy in two calls."
            )
        )


def _copy(k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    _check_copy(src, dst, k_pages.shape[1])
    backend = choose("copy_pages_", k_pages, v_pages).name
    if backend == "reference":
        k_pages[:, dst] = k_pages[:, src]
        v_pages[:, dst] = v_pages[:, src]
        return
    if backend == "triton":
        triton_kernel("copy_pages_")(k_pages, v_pages, src, dst)
        return
    src, dst = src.contiguous(), dst.contiguous()
    unit = k_pages.element_size() if backend == "cuda" else 1  # the CUDA kernel counts bytes
    arguments = (
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        src.data_ptr(),
        dst.data_ptr(),
        src.shape[0],
        k_pages.shape[0],
        k_pages.shape[1],
        unit * (k_pages[0, 0].numel() if k_pages.numel() else 0),
        unit * k_pages.stride(0),
        unit * k_pages.stride(1),
    )
    if backend == "cpu":
        kernels().copy_pages(*arguments)
    else:
        launch("copy_pages", k_pages.device, *arguments, error_bits(k_pages.device).data_ptr())


def _rotate(
    k_pages: torch.Tensor,
    pages: torch.Tensor,
    deltas: torch.Tensor,
    frequencies: torch.Tensor,
    source: torch.Tensor | None,
) -> None:
    _check_pages("pages", pages, k_pages.shape[1], distinct=True)
    backend = choose("rotate_pages_", k_pages, source).name
    if backend == "triton":
        triton_kernel("rotate_pages_")(k_pages, pages, deltas, frequencies, source)
        return
    if backend == "reference":
        reference_rotate_pages_(k_pages, pages, deltas, frequencies, source)
        return
    if source is not None and not source[0:1, 0:1].is_contiguous():
        source = source.contiguous()
    pages, deltas, frequencies = pages.contiguous(), deltas.contiguous(), frequencies.double().contiguous()
    layers, _, heads, rows, head_dim = k_pages.shape
    if backend == "cuda" and head_dim > _CUDA_HEAD_DIM:
        raise TensorError(
            explain(
                "head dimension",
                got=head_dim,
                expected=f"at most {_CUDA_HEAD_DIM} on the cuda backend",
                fix="Set ARDIFF_BACKEND=reference for such heads.",
            )
        )
    angles = k_pages.new_empty(pages.shape[0], 2, head_dim) if backend == "cpu" else None
    arguments = (
        k_pages.data_ptr(),
        address(source),
        pages.data_ptr(),
        deltas.data_ptr(),
        frequencies.data_ptr(),
        address(angles),
        pages.shape[0],
        layers,
        k_pages.shape[1],
        heads * rows,
        head_dim,
        k_pages.stride(0),
        k_pages.stride(1),
        0 if source is None else source.stride(0),
        0 if source is None else source.stride(1),
    )
    if backend == "cpu":
        kernels().rotate_pages(*arguments)
    else:
        launch_for("rotate_pages", k_pages, *arguments, error_bits(k_pages.device).data_ptr())


@torch.library.custom_op("ardiff::copy_pages_", mutates_args=("k_pages", "v_pages"))
def _copy_op(k_pages: torch.Tensor, v_pages: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    _copy(k_pages, v_pages, src, dst)


@torch.library.custom_op("ardiff::rotate_pages_", mutates_args=("k_pages",))
def _rotate_op(
    k_pages: torch.Tensor,
    pages: torch.Tensor,
    deltas: torch.Tensor,
    frequencies: torch.Tensor,
    source: torch.Tensor | None,
) -> None:
    _rotate(k_pages, pages, deltas, frequencies, source)
