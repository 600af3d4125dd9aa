# SPDX-License-Identifier: Apache-2.0
"""The CUDA frame attention kernel against float64 softmax attention.

Most of this needs no GPU: csrc/cuda/frame_attention.cu itself runs on the CPU, with the instructions of
csrc/cuda/ptx.cuh emulated (python_tests/cuda_emulation). Limits: relative L2 4e-3 for bfloat16, 5e-4 for
float16, 2e-6 for float32. Weights are rounded to the storage type but logits are not, so the lse is exact to
2e-5 for all of them.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch
from cuda_emulation.frame_attention import (
    BACKWARD,
    FORWARD,
    RANDOM,
    STORAGE,
    Result,
    build,
    emulate,
)
from test_frame_attention import NAN, Case, relative

from ardiff_engine.ops.backend import choose
from ardiff_engine.ops.frame_attention import frame_attention

LIMIT = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LSE_LIMIT = 2e-5
BAD_VIEW = 8
A100_SHARED, RESERVED = 164 * 1024, 1024  # bytes of a multiprocessor; what a block takes beside its own


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("cuda_emulation"))


def check(case: Case, dtype: torch.dtype, got: Result) -> None:
    assert got.outcome.status == 0
    assert got.outcome.flags == 0
    assert got.outcome.bank_conflicts == 0
    compare(case, dtype, got.o, got.lse)


def compare(case: Case, dtype: torch.dtype, o: torch.Tensor, lse: torch.Tensor) -> None:
    want_o, want_lse = case.oracle(*(x.to(dtype).to(o.device) for x in case.tensors()))
    empty = want_lse == -torch.inf
    want_o = torch.where(empty[..., None], 0.0, want_o)
    assert torch.equal(lse == -torch.inf, empty)
    assert relative(o, want_o) <= LIMIT[dtype]
    if not empty.all():
        assert float((lse - want_lse)[~empty].abs().max()) <= LSE_LIMIT


def run(emulator: ctypes.CDLL, case: Case, dtype: torch.dtype, **options: int) -> Result:
    q, k, v = (x.to(dtype) for x in case.tensors())
    return emulate(emulator, q, k, v, case.table(), **options)


# Pages are permuted; whatever no list names (free pages, tails of pages) is NaN.
RAGGED = Case(
    tokens=[[5, 9, 1], [33, 2], [1]],
    pages=[[3, 7, 1, 10], [7, 2], [9]],
    valid=[[45, 32, 48, 5], [32, 17], [1]],
    seen=[[1, 2, 4], [2, 1], [1]],
    rows=48,
    dim=64,
    heads=2,
    kv_heads=2,
)
# AR-Diffusion: 32-token frames, one page each, causal, after 77 context tokens
CAUSAL = Case(
    tokens=[[32] * 4],
    pages=[[8, 2, 5, 7, 1, 4, 0]],
    valid=[[32, 32, 13, 32, 32, 32, 32]],
    seen=[[4, 5, 6, 7]],
    rows=32,
    dim=72,
    heads=2,
    kv_heads=2,
)
SMALL = replace(RAGGED, heads=1, kv_heads=1)
HIDDEN = -torch.inf
UP_TO_9, ALL_9 = [list(range(1, 10))], [list(range(9))]
CASES = {
    "ragged": RAGGED,
    "causal-32": CAUSAL,
    "gqa": replace(RAGGED, heads=6, kv_heads=2),
    "mqa": replace(CAUSAL, heads=3, kv_heads=1, tokens=[[7] * 4]),
    "bias": replace(RAGGED, bias=[[0.0, 0.5, -2.0, 1.0], [0.0, 3.0], [-1.0]]),
    "hidden-by-bias": replace(RAGGED, bias=[[0.0, HIDDEN, 0.0, HIDDEN], [HIDDEN, 0.0], [HIDDEN]]),
    "frames-of-7": replace(SMALL, tokens=[[7] * 9], pages=ALL_9, valid=[[7] * 9], seen=UP_TO_9, rows=16),
    "one-token-frames": replace(SMALL, tokens=[[1] * 9], pages=ALL_9, valid=[[1] * 9], seen=UP_TO_9, rows=13),
    "empty-views": replace(
        SMALL, tokens=[[3, 4], [5]], pages=[[0, 1], []], valid=[[13, 9], []], seen=[[0, 2], [0]]
    ),
    "empty-pages": replace(SMALL, tokens=[[3, 3]], pages=[[0, 1, 2]], valid=[[0, 13, 0]], seen=[[2, 3]]),
    "pages-of-112": replace(SMALL, tokens=[[40]], pages=[[4, 1]], valid=[[112, 112]], seen=[[2]], rows=112),
    "pages-of-144": replace(SMALL, tokens=[[40]], pages=[[4, 1]], valid=[[144, 70]], seen=[[2]], rows=144),
}  # fmt: skip


@pytest.mark.parametrize("multiprocessors", [1, 100])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_kernel_matches_float64(
    emulator: ctypes.CDLL, name: str, dtype: torch.dtype, multiprocessors: int
) -> None:
    case = CASES[name]
    check(case, dtype, run(emulator, case, dtype, multiprocessors=multiprocessors))


@pytest.mark.parametrize("heads,tile_rows", [(1, 64), (3, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 128])
def test_head_dims_and_tile_rows(
    emulator: ctypes.CDLL, dim: int, dtype: torch.dtype, heads: int, tile_rows: int
) -> None:
    """On two slots, 100 rows of one head are faster as two tiles of 64, of three heads as one of 128 each."""
    case = Case([[32, 32, 36]], [[3, 0, 5]], [[48, 41, 48]], [[1, 2, 3]], None, heads, heads, dim, 48)
    got = run(emulator, case, dtype)
    assert got.outcome.tile_rows == tile_rows
    assert got.outcome.parts == 0
    check(case, dtype, got)
    assert 2 * (got.outcome.largest_shared + 1024) <= 164 * 1024, (
        "two blocks fit into an A100's shared memory"
    )


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_parts_are_merged(emulator: ctypes.CDLL, dtype: torch.dtype) -> None:
    case = replace(CASES["pages-of-144"], pages=[[4, 1, 0, 2]], valid=[[144, 144, 144, 70]], seen=[[4]])
    whole, split = (run(emulator, case, dtype, multiprocessors=n) for n in (1, 132))
    assert whole.outcome.parts == 0 and split.outcome.parts > 2
    check(case, dtype, split)
    assert relative(split.o, whole.o) <= LIMIT[dtype]


def test_rows_that_see_only_some_parts(emulator: ctypes.CDLL) -> None:
    """A frame that sees nothing of a part gets weight 0 for it, also when the frame sees nothing at all."""
    valid = [[144, 144, 144, 70]]
    case = Case([[3, 9, 9, 9]], [[4, 1, 0, 2]], valid, [[0, 1, 3, 4]], rows=144, dim=72, heads=2, kv_heads=1)
    got = run(emulator, case, torch.bfloat16, multiprocessors=132)
    assert got.outcome.parts > 2
    check(case, torch.bfloat16, got)


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_any_order_of_warps_gives_the_same_bits(
    emulator: ctypes.CDLL, dtype: torch.dtype, multiprocessors: int
) -> None:
    """The slowest copies and the most unlucky order of warps: a missing barrier or wait would show as NaN."""
    case = replace(CAUSAL, dim=128, heads=3, kv_heads=3)
    results = [
        run(emulator, case, dtype, multiprocessors=multiprocessors, order=order)
        for order in (FORWARD, BACKWARD, RANDOM)
    ]
    check(case, dtype, results[0])
    for other in results[1:]:
        assert torch.equal(other.o, results[0].o)
        assert torch.equal(other.lse, results[0].lse)


@pytest.mark.parametrize("value", [NAN, torch.inf])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_unseen_pages_do_not_reach_a_frame(emulator: ctypes.CDLL, dtype: torch.dtype, value: float) -> None:
    """A failing later frame must not reach the frames before it, though they share a tile with it."""
    q, k, v = (x.to(dtype) for x in CAUSAL.tensors())
    good = emulate(emulator, q, k, v, CAUSAL.table())
    v[4, :, 3, 7] = value
    k[0, :, 31, 5] = NAN
    bad = emulate(emulator, q, k, v, CAUSAL.table())
    assert torch.equal(bad.o[:64], good.o[:64])
    assert torch.equal(bad.lse[:64], good.lse[:64])
    assert not torch.isfinite(bad.o[64:, :, 7]).any()
    assert torch.isnan(bad.o[96:]).all()


@pytest.mark.parametrize("page", [-1, 12, 2**31 - 1])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_page_out_of_range_is_skipped_and_reported(
    emulator: ctypes.CDLL, dtype: torch.dtype, page: int
) -> None:
    table = CAUSAL.table()
    table.pages[4] = page
    q, k, v = (x.to(dtype) for x in CAUSAL.tensors())
    got = emulate(emulator, q, k, v, table)
    assert got.outcome.flags == BAD_VIEW
    valid = [[n if i != 4 else 0 for i, n in enumerate(CAUSAL.valid[0])]]
    want_o, want_lse = replace(CAUSAL, valid=valid).oracle(q, k, v)
    assert relative(got.o, want_o) <= LIMIT[dtype]
    assert float((got.lse - want_lse).abs().max()) <= LSE_LIMIT


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.5])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_scale(emulator: ctypes.CDLL, dtype: torch.dtype, scale: float) -> None:
    q, k, v = (x.to(dtype) for x in RAGGED.tensors())
    got = emulate(emulator, q, k, v, RAGGED.table(), scale=scale)
    want_o, want_lse = RAGGED.oracle(q, k, v, scale)
    assert relative(got.o, want_o) <= LIMIT[dtype]
    assert float((got.lse - want_lse).abs().max()) <= 5 * LSE_LIMIT


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_strides(emulator: ctypes.CDLL, dtype: torch.dtype) -> None:
    """q inside a packed projection, K and V as layers of one pool, with heads and rows apart."""
    q, k, v = (x.to(dtype) for x in RAGGED.tensors())
    packed = torch.full((q.shape[0], 3, *q.shape[1:]), NAN, dtype=dtype)
    packed[:, 1] = q
    keys = torch.full((2, *k.shape), NAN, dtype=dtype)
    keys[1] = k
    values = torch.full((*v.shape[:3], 2, v.shape[3]), NAN, dtype=dtype)
    values[..., 1, :] = v
    check(RAGGED, dtype, emulate(emulator, packed[:, 1], keys[1], values[..., 1, :], RAGGED.table()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_the_kernel_does_not_take_is_refused(emulator: ctypes.CDLL, dtype: torch.dtype) -> None:
    for dim in (136, 68):
        case = replace(RAGGED, dim=dim)
        assert run(emulator, case, dtype).outcome.status == 1
    q, k, v = (x.to(dtype) for x in RAGGED.tensors())
    shifted = torch.cat([q.flatten()[:1], q.flatten()])[1:].view(q.shape)
    assert emulate(emulator, shifted, k, v, RAGGED.table()).outcome.status == 1


def test_logits_that_grow_and_large_values(emulator: ctypes.CDLL) -> None:
    """Every step has a larger maximum than all before, by far: the running sums are rescaled to nothing."""
    case = Case([[20]], [[0, 1, 2, 3]], [[64] * 4], [[4]], rows=64, dim=64, heads=1, kv_heads=1)
    q, k, v = (x.to(torch.bfloat16) for x in case.tensors())
    for page in range(4):
        k[page] *= 8**page
    got = emulate(emulator, q, k, v, case.table())
    want_o, want_lse = case.oracle(q, k, v)
    assert relative(got.o, want_o) <= LIMIT[torch.bfloat16]
    assert relative(got.lse, want_lse) <= 1e-6


# On a GPU: the same cases through the public op.


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gpu_matches_float64(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    q, k, v = (x.to("cuda", dtype) for x in case.tensors())
    assert choose("frame_attention", q, k, v).name == "cuda"
    o, lse = frame_attention(q, k, v, case.table().to("cuda"), return_lse=True)
    compare(case, dtype, o.cpu(), lse.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 72, 80, 96, 128])
@pytest.mark.parametrize("tokens", [[1560], [32] * 16, [40]], ids=["long", "short-frames", "few"])
def test_gpu_large(tokens: list[int], dim: int, dtype: torch.dtype) -> None:
    """Sizes at which many blocks run at a time, and all ways to cut the work come up; twice the same bits."""
    pages = 40
    case = Case(
        [tokens],
        [list(range(pages))[::-1]],
        [[112, 111, 64, 112] * 10],
        [[pages - i for i in range(len(tokens))]],
        heads=12,
        kv_heads=4,
        dim=dim,
        rows=112,
        pool=pages + 1,
    )
    q, k, v = (x.to("cuda", dtype) for x in case.tensors())
    assert choose("frame_attention", q, k, v).name == "cuda"
    table = case.table().to("cuda")
    first, second = (frame_attention(q, k, v, table, return_lse=True) for _ in range(2))
    compare(case, dtype, *first)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
