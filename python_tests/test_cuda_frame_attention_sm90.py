# SPDX-License-Identifier: Apache-2.0
"""The Hopper frame attention kernel against float64 softmax attention, from the public op down.

Without a GPU the kernel runs on the CPU (`machine`, cuda_machine.py), with emulated mbarriers, bulk tensor
copies and wgmma: descriptors and swizzles are decoded as the PTX ISA states them. Cases and limits are those
of test_cuda_frame_attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from helpers.attention_cases import NAN, Case, relative
from helpers.cuda_attention import (
    BACKWARD,
    CASES,
    CAUSAL,
    FORWARD,
    HIDDEN,
    LIMIT,
    LONG,
    LSE_LIMIT,
    RAGGED,
    RANDOM,
    SMALL,
    attend,
    by_half,
    check,
    check_recorded,
    compare,
    given,
    on_gpu,
)  # fmt: skip

from ardiff_engine import ops
from ardiff_engine.errors import KernelError, PageTableError
from ardiff_engine.ops import cuda_launch, frame_attention_cuda
from ardiff_engine.ops.attention_work import StreamKWork, stream_k_work
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable

pytest_plugins = ["cuda_machine"]
EMULATED = "attention_sm90_module"
HOPPER_SHARED = 227 * 1024  # bytes that a block can have


@pytest.fixture
def hopper(
    request: pytest.FixtureRequest, machine: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """The device of the test's tensors; calls that the Hopper kernel takes run on it, which is checked."""
    monkeypatch.setenv("ARDIFF_HOPPER", "1")
    if machine.type == "cuda":
        if torch.cuda.get_device_capability(machine)[0] != 9:
            pytest.skip("needs a Hopper GPU")
        # Or what runs, and passes, would be the kernel of sm_80.
        assert cuda_launch.has_kernel("frame_attention_sm90_bfloat16"), "this build has none for sm_90a"
        yield machine
        return
    monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (9, 0))
    yield machine
    assert request.getfixturevalue("emulated").emulation.wgmma() > 0


def work_of(case: Case, device: torch.device) -> StreamKWork:
    on = case.table().to(device)
    offsets = (on.frame_ptr, on.group_ptr, on.page_ptr, on.valid, on.seen)
    return stream_k_work(*offsets, case.heads, case.kv_heads, frame_attention_cuda.block_rows(case.rows))


def parts_of(case: Case, device: torch.device) -> int:
    return work_of(case, device).sizes[5]


ONE_TOKEN = replace(
    SMALL, tokens=[[1] * 9], pages=[list(range(9))], valid=[[1] * 9], seen=[list(range(1, 10))], rows=16
)
LONGER = replace(LONG, pages=[[4, 1, 0, 2] * 4], valid=[[144, 144, 144, 70] * 4], seen=[[16]])
# Three tiles of one head, the last of 4 rows; frames end inside of a tile, so the two halves of a tile see
# different numbers of pages. The second group sees all of a page at once: the path without masks.
TALL = Case(
    tokens=[[50, 70, 50, 90], [130]],
    pages=[[3, 7, 1, 10], [7, 2, 5, 0, 4]],
    valid=[[112, 104, 112, 5], [112] * 5],
    seen=[[1, 2, 3, 4], [5]],
    rows=112,
    dim=128,
    heads=1,
    kv_heads=1,
)


# Of the second group all keys exist and are seen: its steps are masked for the bias alone.
TALL_BIASED = replace(TALL, bias=[[0.5, -1.0, HIDDEN, 2.0], [1.0, 0.0, HIDDEN, -3.0, 0.25]])
OWN_CASES = {"one-token-frames": ONE_TOKEN, "tall": TALL, "tall-biased": TALL_BIASED}


@pytest.mark.parametrize("multiprocessors", [1, 5])
@pytest.mark.parametrize("name", dict.fromkeys([*CASES, *OWN_CASES]))
def test_kernel_matches_float64(
    hopper: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, multiprocessors: int
) -> None:
    """Pages of 13 rows are not for this kernel: one-token frames get pages of 16 here."""
    on_gpu(monkeypatch, multiprocessors)
    check({**CASES, **OWN_CASES}[name], torch.bfloat16, hopper)


def test_a_recorded_call_takes_the_schedules_of_other_tables(
    hopper: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_recorded(LONGER, hopper, monkeypatch, torch.bfloat16)


@pytest.mark.parametrize("rows", [16, 32, 48, 64, 80, 96, 112, 128, 144])
def test_page_rows(hopper: torch.device, rows: int) -> None:
    """More steps than the ring holds, and a last page that ends inside of 16 keys."""
    pages = [4, 1, 0, 2, 7, 3, 9, 5]
    valid = [rows] * 7 + [rows - 7]
    case = replace(SMALL, tokens=[[40]], pages=[pages], valid=[valid], seen=[[8]], rows=rows)
    check(case, torch.bfloat16, hopper)


@pytest.mark.parametrize("rows", [112, 64])
@by_half
@pytest.mark.parametrize("dim", [64, 72, 80, 96, 120, 128])
def test_head_dims(hopper: torch.device, dim: int, dtype: torch.dtype, rows: int) -> None:
    case = Case([[32, 60]], [[3, 0, 5]], [[rows, rows - 15, rows]], [[2, 3]], None, 1, 1, dim, rows)
    check(case, dtype, hopper)


def test_the_block_fits_into_a_multiprocessor(emulated: ModuleType, hopper: torch.device) -> None:
    """The largest ring; the emulation refuses more than 227 KB, and more than 48 KB without being asked."""
    check(replace(TALL, rows=128), torch.bfloat16, hopper)
    if hopper.type == "cpu":
        assert 200 * 1024 < emulated.emulation.largest_shared() <= HOPPER_SHARED


@by_half
def test_parts_are_merged(hopper: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    on_gpu(monkeypatch, 1)
    assert parts_of(LONGER, hopper) == 0
    whole, _ = check(LONGER, dtype, hopper)
    on_gpu(monkeypatch, 4)
    assert parts_of(LONGER, hopper) == 4
    split, _ = check(LONGER, dtype, hopper)
    assert relative(split, whole) <= LIMIT[dtype]


def test_rows_that_see_only_some_parts(hopper: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that sees nothing of a part gets weight 0 for it, also when the frame sees nothing at all."""
    on_gpu(monkeypatch, 6)
    case = replace(LONGER, tokens=[[3, 9, 60, 9]], seen=[[0, 2, 9, 16]], dim=72, heads=2)
    assert parts_of(case, hopper) > 2
    check(case, torch.bfloat16, hopper)


@pytest.mark.parametrize("multiprocessors", [1, 4])
@pytest.mark.parametrize("case", [TALL, replace(CAUSAL, dim=128)], ids=["tall", "causal"])
def test_any_order_of_warps_gives_the_same_bits(
    emulated: ModuleType,
    hopper: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    multiprocessors: int,
) -> None:
    """The slowest copies and products, and the most unlucky order of warps and copies: a missing barrier or
    wait would show as NaN."""
    on_gpu(monkeypatch, multiprocessors)
    tensors, table = given(case, torch.bfloat16, hopper), case.table()
    for tensor in tensors:
        emulated.emulation.add_readable(tensor.data_ptr(), tensor.nbytes)
    results = []
    for order in (FORWARD, BACKWARD, RANDOM):
        emulated.emulation.set_order(order)
        results.append(attend(tensors, table, hopper))
    compare(case, tensors, results[0])
    for o, lse in results[1:]:
        assert torch.equal(o, results[0][0]) and torch.equal(lse, results[0][1])


@pytest.mark.parametrize("order", [FORWARD, BACKWARD, RANDOM])
def test_what_was_taken_out_of_a_step_is_known_until_it_is_added(
    request: pytest.FixtureRequest, hopper: torch.device, order: int
) -> None:
    """By the rows that see it, however far the producer is ahead by then. Rows that do not see it share
    their tile."""
    case = replace(
        TALL, tokens=[[50, 70, 50, 90]], pages=[list(range(8))], valid=[[112] * 8], seen=[[2, 4, 6, 8]]
    )
    q, k, v = given(case, torch.bfloat16, hopper)
    good, _ = attend((q, k, v), case.table(), hopper)
    v[2, :, 3, 7] = NAN
    if hopper.type == "cpu":
        request.getfixturevalue("emulated").emulation.set_order(order)
    o, lse = attend((q, k, v), case.table(), hopper)
    assert torch.equal(o[:50], good[:50])
    assert bool(o[50:120].isnan().all()) and bool(lse[50:120].isnan().all())
    assert bool(o[120:].isnan().flatten(1).any(1).all())


@pytest.mark.parametrize("value", [NAN, torch.inf])
@by_half
def test_unseen_pages_do_not_reach_a_frame(hopper: torch.device, dtype: torch.dtype, value: float) -> None:
    """A failing later frame must not reach the frames before it, though they share a tile with it."""
    q, k, v = given(CAUSAL, dtype, hopper)
    good_o, good_lse = attend((q, k, v), CAUSAL.table(), hopper)
    v[4, :, 3, 7] = value
    k[0, :, 31, 5] = NAN
    o, lse = attend((q, k, v), CAUSAL.table(), hopper)
    assert torch.equal(o[:64], good_o[:64])
    assert torch.equal(lse[:64], good_lse[:64])
    assert not torch.isfinite(o[64:, :, 7]).any()
    assert torch.isnan(o[96:]).all()


@pytest.mark.parametrize("page", [-1, 12, 2**31 - 1])
def test_page_out_of_range_is_skipped_and_reported(hopper: torch.device, page: int) -> None:
    """Of a table that was edited on the device: nothing else can hold such an id."""
    tensors, table = given(SMALL, torch.bfloat16, hopper), SMALL.table().to(hopper)
    table.pages[1] = page
    with pytest.raises(PageTableError, match="frame_attention"):
        attend(tensors, table, hopper)
    o, lse = frame_attention(*tensors, table, return_lse=True)
    with pytest.raises(PageTableError):
        ops.check_device(hopper)
    compare(replace(SMALL, valid=[[45, 0, 48, 5], [32, 17], [1]]), tensors, (o.cpu(), lse.cpu()))


def test_rows_out_of_range_are_skipped_and_reported(hopper: torch.device) -> None:
    """More valid rows than a page has would be rows of another head or page."""
    tensors, table = given(SMALL, torch.bfloat16, hopper), SMALL.table().to(hopper)
    offsets = (table.frame_ptr, table.group_ptr, table.page_ptr, table.valid, table.seen)
    stream_k_work(*offsets, SMALL.heads, SMALL.kv_heads, 16)
    table.valid[2] = 49
    o, lse = frame_attention(*tensors, table, return_lse=True)
    with pytest.raises(PageTableError, match="pool"):
        ops.check_device(hopper)
    compare(replace(SMALL, valid=[[45, 32, 0, 5], [32, 17], [1]]), tensors, (o.cpu(), lse.cpu()))


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.5])
@pytest.mark.parametrize("case", [SMALL, TALL], ids=["small", "tall"])
def test_scale(hopper: torch.device, case: Case, scale: float) -> None:
    tensors = given(case, torch.bfloat16, hopper)
    o, lse = attend(tensors, case.table(), hopper, scale)
    want_o, want_lse = case.oracle(*(x.cpu() for x in tensors), scale)
    assert relative(o, want_o) <= LIMIT[torch.bfloat16]
    assert float((lse - want_lse).abs().max()) <= 10 * LSE_LIMIT


def test_strides(hopper: torch.device) -> None:
    """q inside a packed projection, K and V as layers of one pool, with heads and rows apart."""
    q, k, v = given(RAGGED, torch.bfloat16, hopper)
    packed = torch.full((q.shape[0], 3, *q.shape[1:]), NAN, dtype=q.dtype, device=hopper)
    packed[:, 1] = q
    keys = torch.full((2, *k.shape), NAN, dtype=q.dtype, device=hopper)
    keys[1] = k
    values = torch.full((*v.shape[:3], 2, v.shape[3]), NAN, dtype=q.dtype, device=hopper)
    values[..., 1, :] = v
    compare(RAGGED, (q, k, v), attend((packed[:, 1], keys[1], values[..., 1, :]), RAGGED.table(), hopper))


def test_logits_that_grow_and_large_values(hopper: torch.device) -> None:
    """Every step has a larger maximum than all before, by far: the running sums are rescaled to nothing."""
    case = Case([[20]], [[0, 1, 2, 3]], [[128] * 4], [[4]], rows=128, dim=64, heads=1, kv_heads=1)
    q, k, v = given(case, torch.bfloat16, hopper)
    for page in range(4):
        k[page] *= 8**page
    o, lse = attend((q, k, v), case.table(), hopper)
    want_o, want_lse = case.oracle(q.cpu(), k.cpu(), v.cpu())
    assert relative(o, want_o) <= LIMIT[torch.bfloat16]
    assert relative(lse, want_lse) <= 1e-6


# Which kernel runs, and why; what neither takes is test_cuda_frame_attention.py's.


def test_which_kernel_and_why(machine: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(case: Case = SMALL, dtype: torch.dtype = torch.bfloat16) -> str:
        choice = frame_attention_cuda.which_kernel(*given(case, dtype, machine))
        assert choice.name == ("sm_80" if choice.reason.startswith("not sm_90a: ") else "sm_90a")
        return choice.reason

    monkeypatch.setenv("ARDIFF_HOPPER", "1")
    for capability in ((8, 9), (10, 0)):
        monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device, c=capability: c)
        assert why() == (
            f"not sm_90a: the GPU has compute capability {capability[0]}.{capability[1]}; it needs 9.x"
        )
    monkeypatch.setattr(frame_attention_cuda, "_capability", lambda device: (9, 0))
    assert why() == "a Hopper GPU and ARDIFF_HOPPER=1"
    monkeypatch.delenv("ARDIFF_HOPPER")
    assert why() == "not sm_90a: not yet run on a GPU; ARDIFF_HOPPER=1 asks for it"
    assert why(dtype=torch.float32) == "not sm_90a: dtype is float32; it takes bfloat16 or float16"
    assert why(replace(SMALL, dim=56)) == "not sm_90a: head dimension is 56; it takes 64 to 128"
    assert why(replace(SMALL, rows=50)) == "not sm_90a: pages have 50 rows; it takes multiples of 16"
    monkeypatch.setattr(frame_attention_cuda, "MOST_TENSOR_MAP_STRIDE", 1024)
    assert "too far apart" in why()
    monkeypatch.setattr(frame_attention_cuda, "MOST_TENSOR_MAP_STRIDE", 2**40)
    monkeypatch.setattr(frame_attention_cuda, "has_kernel", lambda name: False)
    assert why() == "not sm_90a: this build has no kernels for sm_90a"


@pytest.mark.parametrize("wrong", ["dim", "kv_heads", "block_rows", "error", "stride", "address"])
def test_the_launcher_refuses_what_it_does_not_take(machine: torch.device, wrong: str) -> None:
    q, k, v = given(SMALL, torch.bfloat16, machine)
    o, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=machine)
    table, work = SMALL.table().to(machine), work_of(SMALL, machine)
    names = ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen")
    listed = [getattr(table, name).data_ptr() for name in names]
    addresses = [x.data_ptr() for x in (q, k, v, o, lse)]
    addresses[1] += 2 if wrong == "address" else 0
    row = 68 if wrong == "stride" else 64
    with pytest.raises(KernelError, match="cudaErrorInvalidValue"):
        cuda_launch.launch_for(
            "frame_attention_sm90", q, tuple(addresses), (*listed, 0, table.num_groups),
            (q.shape[0], 12, 1, 0 if wrong == "kv_heads" else 1, 136 if wrong == "dim" else 64, 48),
            (64, 64, 48 * row, 48 * row, row, 48 * 64, 48 * 64, 64), 1.0, work.buffer.data_ptr(), 0,
            work.sizes, 112 if wrong == "block_rows" else 16,
            0 if wrong == "error" else cuda_launch.error_bits(machine).data_ptr(),
        )  # fmt: skip


# On a Hopper GPU alone: sizes that the emulation cannot run.


def hopper_gpu() -> torch.device:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    return torch.device("cuda")


@pytest.mark.gpu
@by_half
@pytest.mark.parametrize("dim", [64, 72, 80, 96, 128])
@pytest.mark.parametrize("tokens", [[1560], [32] * 16, [40]], ids=["long", "short-frames", "few"])
@pytest.mark.parametrize("rows", [112, 32])
def test_gpu_large(
    monkeypatch: pytest.MonkeyPatch, tokens: list[int], dim: int, dtype: torch.dtype, rows: int
) -> None:
    """Sizes at which all workers have several items and parts; three times the same bits."""
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    monkeypatch.setenv("ARDIFF_HOPPER", "1")
    device, pages = hopper_gpu(), 40
    case = Case(
        [tokens],
        [list(range(pages))[::-1]],
        [[rows, rows - 1, rows // 2, rows] * 10],
        [[pages - i for i in range(len(tokens))]],
        heads=12,
        kv_heads=4,
        dim=dim,
        rows=rows,
        pool=pages + 1,
    )
    tensors, table = given(case, dtype, device), case.table().to(device)
    assert frame_attention_cuda.which_kernel(*tensors).name == "sm_90a"
    first, *others = (attend(tensors, table, device) for _ in range(3))
    compare(case, tensors, first)
    for other in others:
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


@pytest.mark.gpu
@pytest.mark.parametrize("queries,keys", [(4680, 18720), (4680, 32760), (1560, 14040)])
def test_gpu_wan_shapes(monkeypatch: pytest.MonkeyPatch, queries: int, keys: int) -> None:
    """The shapes of the benchmarks, against float64 on some of the rows."""
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    monkeypatch.setenv("ARDIFF_HOPPER", "1")
    device, rows, heads, dim = hopper_gpu(), 112, 12, 128
    frames, listed = keys // 1560, 14 * (keys // 1560)
    pool = torch.randperm(listed)
    table = FrameTable.build([queries], [pool.tolist()], [([rows] * 13 + [1560 - 13 * rows]) * frames])
    q = torch.randn(queries, heads, dim, device=device).bfloat16()
    k, v = (torch.full((listed, heads, rows, dim), NAN, device=device).bfloat16() for _ in "kv")
    dense = torch.randn(2, heads, frames, 1560, dim, device=device).bfloat16()
    for pages, of in zip((k, v), dense, strict=True):
        padded = torch.nn.functional.pad(of, (0, 0, 0, 14 * rows - 1560), value=NAN)
        pages[pool] = padded.reshape(heads, listed, rows, dim).transpose(0, 1)
    assert frame_attention_cuda.which_kernel(q, k, v).name == "sm_90a"
    o, lse = frame_attention(q, k, v, table.to(device), return_lse=True)
    again = frame_attention(q, k, v, table.to(device))
    ops.check_device(device)
    some = torch.randperm(queries)[:96].to(device)
    keys64, values64 = dense.double().flatten(2, 3)
    logits = torch.einsum("thd,hnd->htn", q[some].double(), keys64) * dim**-0.5
    want = torch.einsum("htn,hnd->thd", logits.softmax(-1), values64)
    assert relative(o[some], want) <= LIMIT[torch.bfloat16]
    assert float((lse[some] - logits.logsumexp(-1).T).abs().max()) <= LSE_LIMIT
    assert torch.equal(o, again)
