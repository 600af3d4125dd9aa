# SPDX-License-Identifier: Apache-2.0
"""The CUDA frame attention kernel against float64 softmax attention, from the public op down.

Without a GPU the kernel runs on the CPU (`machine`, cuda_machine.py), with emulated mma.sync, ldmatrix and
cp.async. Limits: relative L2 4e-3 for bfloat16, 5e-4 for float16, 2e-6 for float32. Weights are rounded to
the storage type but logits are not, so the lse is exact to 2e-5 for all of them.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_frame_attention import NAN, Case, relative

from ardiff_engine import ops
from ardiff_engine.errors import BackendNotAvailableError, KernelError, PageTableError, TensorError
from ardiff_engine.ops import attention_work as schedules
from ardiff_engine.ops import cuda_launch
from ardiff_engine.ops.attention_work import AttentionWork, attention_work, keep_recorded
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_attention_cuda import recorded_work
from ardiff_engine.ops.frame_table import FrameTable

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_module"

Tensor = torch.Tensor
STORAGE = [torch.float32, torch.bfloat16, torch.float16]
HALF = STORAGE[1:]
LIMIT = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
LSE_LIMIT = 2e-5
A100_SHARED, RESERVED = 164 * 1024, 1024  # bytes of a multiprocessor; what a block takes beside its own
FORWARD, BACKWARD, RANDOM = range(3)  # which warp the emulation runs first
by_dtype = pytest.mark.parametrize("dtype", STORAGE, ids=lambda d: str(d).removeprefix("torch."))
# Where the storage type changes nothing but the rounding, one half type stands for both.
by_kernel = pytest.mark.parametrize("dtype", STORAGE[:2], ids=["float32", "bfloat16"])
by_half = pytest.mark.parametrize("dtype", HALF, ids=lambda d: str(d).removeprefix("torch."))

Tensors = tuple[Tensor, Tensor, Tensor]


def on_gpu(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    """Schedules are made for a GPU of so many; any GPU can run them."""
    monkeypatch.setattr(schedules, "_multiprocessors", lambda device: multiprocessors)


def given(case: Case, dtype: torch.dtype, device: torch.device) -> Tensors:
    q, k, v = (x.to(device, dtype) for x in case.tensors())
    return q, k, v


def attend(
    tensors: Tensors, table: FrameTable, device: torch.device, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(o, lse) on the CPU; a kernel that finds an id out of range raises."""
    o, lse = frame_attention(*tensors, table.to(device), scale=scale, return_lse=True)
    ops.check_device(device)
    return o.cpu(), lse.cpu()


def work_of(case: Case, device: torch.device, table: FrameTable | None = None) -> AttentionWork:
    on = (case.table() if table is None else table).to(device)
    return attention_work(
        on.frame_ptr, on.group_ptr, on.page_ptr, on.valid, on.seen, case.heads, case.kv_heads
    )


def parts_of(case: Case, device: torch.device) -> int:
    return work_of(case, device).sizes[5]


def compare(case: Case, tensors: Tensors, got: tuple[Tensor, Tensor], scale: float | None = None) -> None:
    o, lse = got
    assert lse.dtype == torch.float32
    want_o, want_lse = case.oracle(*(x.cpu() for x in tensors), scale)
    empty = want_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert relative(o, torch.where(empty[..., None], 0.0, want_o)) <= LIMIT[o.dtype]
    if not empty.all():
        assert float((lse - want_lse)[~empty].abs().max()) <= LSE_LIMIT


def check(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = given(case, dtype, device)
    got = attend(tensors, case.table(), device)
    compare(case, tensors, got)
    return got


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
    heads=1,
    kv_heads=1,
)
SMALL = replace(RAGGED, heads=1, kv_heads=1)
HIDDEN = -torch.inf
UP_TO_9, ALL_9 = [list(range(1, 10))], [list(range(9))]
CASES = {
    "ragged": RAGGED,
    "causal-32": CAUSAL,
    "gqa": replace(RAGGED, heads=6, kv_heads=2),
    "mqa": replace(CAUSAL, heads=3, kv_heads=1, tokens=[[7] * 4]),
    "bias": replace(SMALL, bias=[[0.0, 0.5, -2.0, 1.0], [0.0, 3.0], [-1.0]]),
    "hidden-by-bias": replace(SMALL, bias=[[0.0, HIDDEN, 0.0, HIDDEN], [HIDDEN, 0.0], [HIDDEN]]),
    "frames-of-7": replace(SMALL, tokens=[[7] * 9], pages=ALL_9, valid=[[7] * 9], seen=UP_TO_9, rows=16),
    "one-token-frames": replace(SMALL, tokens=[[1] * 9], pages=ALL_9, valid=[[1] * 9], seen=UP_TO_9, rows=13),
    "out-of-order-views": replace(
        SMALL, tokens=[[7, 0, 7, 7]], pages=[[0, 1, 2]], valid=[[13, 48, 3]], seen=[[3, 3, 1, 2]]
    ),
    "page-listed-twice": replace(SMALL, tokens=[[4]], pages=[[6, 6, 1]], valid=[[13, 4, 2]], seen=[[3]]),
    "empty-views": replace(
        SMALL, tokens=[[3, 4], [5]], pages=[[0, 1], []], valid=[[13, 9], []], seen=[[0, 2], [0]]
    ),
    "empty-pages": replace(SMALL, tokens=[[3, 3]], pages=[[0, 1, 2]], valid=[[0, 13, 0]], seen=[[2, 3]]),
}  # fmt: skip


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


LONG = replace(SMALL, tokens=[[40]], pages=[[4, 1, 0, 2]], valid=[[144, 144, 144, 70]], seen=[[4]], rows=144)


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
    with pytest.raises(PageTableError, match="frame_attention: a page or row outside the pool"):
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
    with pytest.raises(PageTableError, match="row outside the pool"):
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


# What the kernel does not take: a typed error that names it, and the launcher refuses it too.


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
    with pytest.raises(TensorError, match="address of q: got 2 bytes beyond a multiple of 16"):
        attend((shifted, k, v), table, machine)
    uneven = torch.nn.functional.pad(k, (0, 4))[..., :64]
    with pytest.raises(TensorError, match="strides of k_pages.*multiples of 8"):
        attend((q, uneven, v), table, machine)
    with pytest.raises(TensorError, match="last stride of v_pages"):
        attend((q, k, v.transpose(2, 3).contiguous().transpose(2, 3)), table, machine)


def test_what_the_float_kernel_does_not_take_is_refused(machine: torch.device) -> None:
    case = replace(SMALL, dim=257)
    with pytest.raises(TensorError, match="head dimension: got 257, expected at most 256 for float32"):
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
    with pytest.raises(KernelError, match="CUDA refused the launch: cudaErrorInvalidValue"):
        cuda_launch.launch_for("frame_attention", q, *arguments.values())


# The schedule: once per table, and for as long as it lives.


def count_schedules(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    built: list[tuple[int, int]] = []
    build = schedules._build

    def counted(of_table: Any, seen: Tensor, heads: int, kv_heads: int) -> AttentionWork:
        built.append((heads, kv_heads))
        return build(of_table, seen, heads, kv_heads)

    monkeypatch.setattr(schedules, "_build", counted)
    return built


def test_a_table_is_scheduled_once(machine: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the op runs through the dispatcher, for its gradients; page ids may change in place."""
    built = count_schedules(monkeypatch)
    q, k, v = given(SMALL, torch.float32, machine)
    table = SMALL.table().to(machine)
    for _ in range(3):
        first = attend((q, k, v), table, machine)
    q.requires_grad_()
    o, lse = frame_attention(q, k, v, table, return_lse=True)
    assert torch.equal(o.detach().cpu(), first[0]) and torch.equal(lse.detach().cpu(), first[1])
    assert built == [(1, 1)]
    moved = table.pages.clone()
    table.pages[0], k[11], v[11] = 11, k[int(moved[0])], v[int(moved[0])]
    again = attend((q.detach(), k, v), table, machine)
    assert built == [(1, 1)] and torch.equal(again[0], first[0])
    attend(given(replace(SMALL, heads=2), torch.float32, machine), table, machine)
    assert built == [(1, 1), (2, 1)]
    other = replace(table, seen=table.seen.clone())
    attend((q.detach(), k, v), other, machine)
    assert built == [(1, 1), (2, 1), (1, 1)]
    attend((q.detach(), k, v), replace(table, frame_ptr=table.frame_ptr.clone()), machine)
    assert len(built) == 4, "another table that shares one tensor"


def test_the_offsets_of_a_moved_table_are_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose memory cannot be read at all; the schedule is that of the table on the CPU."""
    monkeypatch.setattr(schedules, "_multiprocessors", lambda device: 132)
    table = SMALL.table()
    moved = table.to("meta")
    work = work_of(SMALL, torch.device("meta"), moved)
    assert work.buffer.device.type == "meta"
    here = work_of(SMALL, torch.device("cpu"), table)
    assert work.sizes == here.sizes and work.buffer.shape == here.buffer.shape
    strangers = [
        getattr(moved, name).clone() for name in ("frame_ptr", "group_ptr", "page_ptr", "valid", "seen")
    ]
    with pytest.raises(NotImplementedError, match="meta"):
        attention_work(*strangers, 1, 1)


def test_a_schedule_goes_with_its_table(machine: torch.device) -> None:
    before = len(schedules._kept())
    table = SMALL.table().to(machine)
    attend(given(SMALL, torch.float32, machine), table, machine)
    assert len(schedules._kept()) == before + 1
    del table
    gc.collect()
    assert len(schedules._kept()) == before


@by_kernel
def test_a_recorded_call_takes_the_schedules_of_other_tables(
    machine: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    check_recorded(LONG, machine, monkeypatch, dtype)


def check_recorded(
    case: Case, machine: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """What a CUDA graph repeats: one set of addresses, sizes with room, the values of one table after the
    other. The same bits as a call with each table alone."""
    on_gpu(monkeypatch, 132)
    shorter = replace(case, valid=[[*case.valid[0][:-1], 60]])
    first, second, *others = case.pages[0]
    cases = (case, shorter, replace(case, pages=[[second, first, *others]]))
    tensors = given(case, dtype, machine)
    tables = [each.table() for each in cases]
    expected = [attend(tensors, table, machine) for table in tables]
    works = [recorded_work(table.offsets, *tensors) for table in tables]
    assert len({work.sizes for work in works}) == 1 and works[0].sizes[5] > 2
    names = ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen")
    static = tables[0].over({name: getattr(tables[0], name).clone().to(machine) for name in names})
    words = works[0].words.clone().to(machine)
    keep_recorded(static.offsets, case.heads, case.kv_heads, words, works[0])
    monkeypatch.setattr(schedules, "_planned", lambda *arguments: pytest.fail("made a schedule of its own"))
    for table, work, (o, lse) in zip(tables, works, expected, strict=True):
        words.copy_(work.words)
        for name in names:
            getattr(static, name).copy_(getattr(table, name))
        got = frame_attention(*tensors, static, return_lse=True)
        assert torch.equal(got[0].cpu(), o) and torch.equal(got[1].cpu(), lse)


def test_an_edited_table_is_a_typed_error(machine: torch.device) -> None:
    """Where its offsets are read from the device; those that a FrameTable left on the host cannot change."""
    tensors, table = given(SMALL, torch.float32, machine), SMALL.table().to(machine)
    schedules._kept().clear()
    table.seen[0] = 99
    with pytest.raises(PageTableError, match="Do not edit a FrameTable"):
        attend(tensors, table, machine)


def test_no_tokens(machine: torch.device) -> None:
    q, k, v = given(SMALL, torch.bfloat16, machine)
    table = FrameTable.build([[0]], [[1]], [[5]])
    o, lse = attend((q[:0], k, v), table, machine)
    assert o.shape == (0, 1, 64) and lse.shape == (0, 1) and o.dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_steady_call_neither_waits_nor_is_refused_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    monkeypatch.delenv("ARDIFF_HOPPER", raising=False)
    device = torch.device("cuda", torch.cuda.current_device())
    ops.check_device(device)
    tensors, table = given(LONG, torch.bfloat16, device), LONG.table().to(device)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(KernelError, match="Call it once with this table"), torch.cuda.graph(graph):
        frame_attention(*tensors, table)
    first = frame_attention(*tensors, table)
    torch.cuda.set_sync_debug_mode("error")
    try:
        frame_attention(*tensors, table)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        again = frame_attention(*tensors, table)
    again.zero_()
    graph.replay()
    assert torch.equal(again, first)


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
