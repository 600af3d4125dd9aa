# SPDX-License-Identifier: Apache-2.0
"""The CUDA frame attention kernel against float64 softmax attention, from the public op down.

Without a GPU the kernel runs on the CPU (`machine`, cuda_machine.py), with emulated mma.sync, ldmatrix and
cp.async. Limits: relative L2 4e-3 for bfloat16, 5e-4 for float16, 2e-6 for float32. Weights are rounded to
the storage type but logits are not, so the lse is exact to 2e-5 for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.attention_cases import NAN, Case, relative
from helpers.cuda_attention import (
    BACKWARD,
    CASES,
    CAUSAL,
    FORWARD,
    LIMIT,
    LONG,
    LSE_LIMIT,
    RAGGED,
    RANDOM,
    SMALL,
    STORAGE,
    attend,
    by_half,
    by_kernel,
    check,
    compare,
    given,
    on_gpu,
    work_of,
)

from ardiff_engine import ops
from ardiff_engine.errors import BackendNotAvailableError, KernelError, PageTableError, TensorError
from ardiff_engine.ops import cuda_launch
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_module"
A100_SHARED, RESERVED = 164 * 1024, 1024  # bytes of a multiprocessor; what a block takes beside its own
by_dtype = pytest.mark.parametrize("dtype", STORAGE, ids=lambda d: str(d).removeprefix("torch."))


def parts_of(case: Case, device: torch.device) -> int:
    return work_of(case, device).sizes[5]


@pytest.mark.parametrize("multiprocessors", [1, 100])
@by_kernel
@pytest.mark.parametrize("name", CASES)
def test_kernel_matches_float64(
    machine: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    multiprocessors: int,
) -> None:
    on_gpu(monkeypatch, multiprocessors)
    check(CASES[name], dtype, machine)


@pytest.mark.parametrize("rows", [16, 32, 64, 80, 112, 128, 144])
def test_page_rows(machine: torch.device, rows: int) -> None:
    case = replace(SMALL, tokens=[[40]], pages=[[4, 1]], valid=[[rows, rows - 7]], seen=[[2]], rows=rows)
    check(case, torch.bfloat16, machine)


@pytest.mark.parametrize("heads,tile_rows", [(1, 64), (3, 128)])
@by_half
@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 128])
def test_head_dims_and_tile_rows(
    machine: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    dim: int,
    dtype: torch.dtype,
    heads: int,
    tile_rows: int,
) -> None:
    """On two slots, 100 rows of one head are faster as two tiles of 64, of three heads as one of 128 each."""
    on_gpu(monkeypatch, 1)
    case = Case([[32, 32, 36]], [[3, 0, 5]], [[48, 41, 48]], [[1, 2, 3]], None, heads, heads, dim, 48)
    assert work_of(case, machine).sizes[4:] == (tile_rows, 0)
    check(case, dtype, machine)


def test_two_blocks_fit_into_an_a100(emulated: ModuleType, machine: torch.device) -> None:
    """The largest tile there is; the emulation refuses more than 48 KB where the launcher did not ask."""
    case = Case([[100]], [[3, 0]], [[48, 41]], [[2]], None, 3, 3, 128, 48)
    check(case, torch.bfloat16, machine)
    if machine.type == "cpu":
        assert 48 * 1024 < emulated.emulation.largest_shared() <= A100_SHARED // 2 - RESERVED


@by_dtype
def test_parts_are_merged(machine: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    on_gpu(monkeypatch, 1)
    assert parts_of(LONG, machine) == 0
    whole, _ = check(LONG, dtype, machine)
    on_gpu(monkeypatch, 132)
    assert parts_of(LONG, machine) > 2
    split, _ = check(LONG, dtype, machine)
    assert relative(split, whole) <= LIMIT[dtype]


def test_rows_that_see_only_some_parts(machine: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that sees nothing of a part gets weight 0 for it, also when the frame sees nothing at all."""
    on_gpu(monkeypatch, 132)
    case = replace(LONG, tokens=[[3, 9, 9, 9]], seen=[[0, 1, 3, 4]], dim=72, heads=2)
    assert parts_of(case, machine) > 2
    check(case, torch.bfloat16, machine)


@pytest.mark.parametrize("multiprocessors", [1, 132])
@by_kernel
def test_any_order_of_warps_gives_the_same_bits(
    emulated: ModuleType,
    machine: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    multiprocessors: int,
) -> None:
    """The slowest copies and the most unlucky order of warps: a missing barrier or wait would show as NaN."""
    on_gpu(monkeypatch, multiprocessors)
    case = replace(CAUSAL, dim=128, tokens=[[32, 32, 5, 0]])
    tensors, table = given(case, dtype, machine), case.table()
    for tensor in tensors:
        emulated.emulation.add_readable(tensor.data_ptr(), tensor.nbytes)
    results = []
    for order in (FORWARD, BACKWARD, RANDOM):
        emulated.emulation.set_order(order)
        results.append(attend(tensors, table, machine))
    compare(case, tensors, results[0])
    for o, lse in results[1:]:
        assert torch.equal(o, results[0][0]) and torch.equal(lse, results[0][1])


@pytest.mark.parametrize("value", [NAN, torch.inf])
@by_dtype
def test_unseen_pages_do_not_reach_a_frame(machine: torch.device, dtype: torch.dtype, value: float) -> None:
    """A failing later frame must not reach the frames before it, though they share a tile with it."""
    q, k, v = given(CAUSAL, dtype, machine)
    good_o, good_lse = attend((q, k, v), CAUSAL.table(), machine)
    v[4, :, 3, 7] = value
    k[0, :, 31, 5] = NAN
    o, lse = attend((q, k, v), CAUSAL.table(), machine)
    assert torch.equal(o[:64], good_o[:64])
    assert torch.equal(lse[:64], good_lse[:64])
    assert not torch.isfinite(o[64:, :, 7]).any()
    assert torch.isnan(o[96:]).all()


@pytest.mark.parametrize("page", [-1, 12, 2**31 - 1])
@by_kernel
def test_page_out_of_range_is_skipped_and_reported(
    machine: torch.device, dtype: torch.dtype, page: int
) -> None:
    """Of a table that was edited on the device: nothing else can hold such an id."""
    tensors, table = given(SMALL, dtype, machine), SMALL.table().to(machine)
    table.pages[1] = page
    with pytest.raises(PageTableError, match="frame_attention"):
        attend(tensors, table, machine)
    o, lse = frame_attention(*tensors, table, return_lse=True)
    with pytest.raises(PageTableError):
        ops.check_device(machine)
    compare(replace(SMALL, valid=[[45, 0, 48, 5], [32, 17], [1]]), tensors, (o.cpu(), lse.cpu()))


@by_dtype
def test_rows_out_of_range_are_skipped_and_reported(machine: torch.device, dtype: torch.dtype) -> None:
    """More valid rows than a page has would be rows of another head or page."""
    tensors, table = given(SMALL, dtype, machine), SMALL.table().to(machine)
    work_of(SMALL, machine, table)
    table.valid[2] = 49
    o, lse = frame_attention(*tensors, table, return_lse=True)
    with pytest.raises(PageTableError, match="pool"):
        ops.check_device(machine)
    compare(replace(SMALL, valid=[[45, 32, 0, 5], [32, 17], [1]]), tensors, (o.cpu(), lse.cpu()))


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.5])
@by_kernel
def test_scale(machine: torch.device, dtype: torch.dtype, scale: float) -> None:
    tensors = given(SMALL, dtype, machine)
    o, lse = attend(tensors, SMALL.table(), machine, scale)
    want_o, want_lse = SMALL.oracle(*(x.cpu() for x in tensors), scale)
    assert relative(o, want_o) <= LIMIT[dtype]
    assert float((lse - want_lse).abs().max()) <= 5 * LSE_LIMIT


@by_dtype
def test_strides(machine: torch.device, dtype: torch.dtype) -> None:
    """q inside a packed projection, K and V as layers of one pool, with heads and rows apart."""
    q, k, v = given(RAGGED, dtype, machine)
    packed = torch.full((q.shape[0], 3, *q.shape[1:]), NAN, dtype=dtype, device=machine)
    packed[:, 1] = q
    keys = torch.full((2, *k.shape), NAN, dtype=dtype, device=machine)
    keys[1] = k
    values = torch.full((*v.shape[:3], 2, v.shape[3]), NAN, dtype=dtype, device=machine)
    values[..., 1, :] = v
    compare(RAGGED, (q, k, v), attend((packed[:, 1], keys[1], values[..., 1, :]), RAGGED.table(), machine))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_offsets_beyond_32_bits(machine: torch.device, tmp_path: Path, dtype: torch.dtype) -> None:
    """Page 5 of this pool begins 2.7e9 elements after page 0. On the CPU the pool is a file full of holes."""
    case = replace(SMALL, tokens=[[3]], pages=[[0, 5]], valid=[[48, 9]], seen=[[2]], pool=6)
    q, k, v = given(case, dtype, machine)
    apart = 2**29
    elements = 5 * apart + k[0].numel()
    if machine.type == "cpu":
        paths = [str(tmp_path / name) for name in "kv"]
        pools = [torch.from_file(path, shared=True, size=elements, dtype=dtype) for path in paths]
    else:
        pools = [torch.empty(elements, dtype=dtype, device=machine) for _ in "kv"]
    strided = [pool.as_strided(k.shape, (apart, *k.stride()[1:])) for pool in pools]
    for pool, pages in zip(strided, (k, v), strict=True):
        for page in (0, 5):
            pool[page] = pages[page]
    compare(case, (q, k, v), attend((q, strided[0], strided[1]), case.table(), machine))


def test_logits_that_grow_and_large_values(machine: torch.device) -> None:
    """Every step has a larger maximum than all before, by far: the running sums are rescaled to nothing."""
    case = Case([[20]], [[0, 1, 2, 3]], [[64] * 4], [[4]], rows=64, dim=64, heads=1, kv_heads=1)
    q, k, v = given(case, torch.bfloat16, machine)
    for page in range(4):
        k[page] *= 8**page
    o, lse = attend((q, k, v), case.table(), machine)
    want_o, want_lse = case.oracle(q.cpu(), k.cpu(), v.cpu())
    assert relative(o, want_o) <= LIMIT[torch.bfloat16]
    assert relative(lse, want_lse) <= 1e-6


@by_half
def test_what_the_kernel_does_not_take_is_refused(machine: torch.device, dtype: torch.dtype) -> None:
    for dim in (136, 68):
        case = replace(SMALL, dim=dim)
        with pytest.raises(
            TensorError, match=f"head dimension: got {dim}, expected a multiple of 8, at most 1"
        ):
            attend(given(case, dtype, machine), case.table(), machine)
    q, k, v = given(SMALL, dtype, machine)
    table = SMALL.table()
    shifted = torch.cat([q.flatten()[:1], q.flatten()])[1:].view(q.shape)
    with pytest.raises(TensorError, match="multiple"):
        attend((shifted, k, v), table, machine)
    uneven = torch.nn.functional.pad(k, (0, 4))[..., :64]
    with pytest.raises(TensorError, match="strides"):
        attend((q, uneven, v), table, machine)
    with pytest.raises(TensorError, match="v_pages"):
        attend((q, k, v.transpose(2, 3).contiguous().transpose(2, 3)), table, machine)


def test_what_the_float_kernel_does_not_take_is_refused(machine: torch.device) -> None:
    case = replace(SMALL, dim=257)
    with pytest.raises(TensorError, match="dimension"):
        attend(given(case, torch.float32, machine), case.table(), machine)
    with pytest.raises(BackendNotAvailableError, match="float64"):
        attend(given(SMALL, torch.float64, machine), SMALL.table(), machine)
    check(replace(SMALL, dim=21, heads=2), torch.float32, machine)  # any D, any address


@by_dtype
@pytest.mark.parametrize("wrong", ["dim", "kv_heads", "tile_rows", "error"])
def test_the_launcher_refuses_it_too(machine: torch.device, dtype: torch.dtype, wrong: str) -> None:
    """Without a crash: kv_heads = 0 once divided by zero."""
    q, k, v = given(SMALL, dtype, machine)
    o, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=machine)
    table, work = SMALL.table().to(machine), work_of(SMALL, machine)
    listed = [
        getattr(table, name) for name in ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen")
    ]
    arguments = dict(
        tensors=tuple(x.data_ptr() for x in (q, k, v, o, lse)),
        table=(*(x.data_ptr() for x in listed), 0, table.num_groups),
        sizes=(q.shape[0], 12, 1, 0 if wrong == "kv_heads" else 1, 264 if wrong == "dim" else 64, 48),
        strides=(64, 64, 48 * 64, 48 * 64, 64, 48 * 64, 48 * 64, 64),
        scale=1.0,
        plan=work.buffer.data_ptr(),
        workspace=0,
        plan_sizes=(*work.sizes[:4], 32 if wrong == "tile_rows" else 64, 0),
        error=0 if wrong == "error" else cuda_launch.error_bits(machine).data_ptr(),
    )
    with pytest.raises(KernelError, match="cudaErrorInvalidValue"):
        cuda_launch.launch_for("frame_attention", q, *arguments.values())


def test_no_tokens(machine: torch.device) -> None:
    q, k, v = given(SMALL, torch.bfloat16, machine)
    table = FrameTable.build([[0]], [[1]], [[5]])
    o, lse = attend((q[:0], k, v), table, machine)
    assert o.shape == (0, 1, 64) and lse.shape == (0, 1) and o.dtype == torch.bfloat16


@pytest.mark.gpu
@by_half
@pytest.mark.parametrize("dim", [64, 72, 80, 96, 128])
@pytest.mark.parametrize("tokens", [[1560], [32] * 16, [40]], ids=["long", "short-frames", "few"])
def test_gpu_large(monkeypatch: pytest.MonkeyPatch, tokens: list[int], dim: int, dtype: torch.dtype) -> None:
    """Sizes at which many blocks run at a time, and all ways to cut the work come up; twice the same bits."""
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    monkeypatch.delenv("ARDIFF_HOPPER", raising=False)
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
    device = torch.device("cuda")
    tensors, table = given(case, dtype, device), case.table().to(device)
    first, second = (attend(tensors, table, device) for _ in range(2))
    compare(case, tensors, first)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
