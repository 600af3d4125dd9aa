# SPDX-License-Identifier: Apache-2.0
"""frame_attention against float64 softmax attention: every instruction set, poisoned memory everywhere.

Limits: relative L2 1e-5 in float32 (about 4e-7 is typical), 1e-12 in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers.attention_cases import CASES, ISAS, NAN, RAGGED, Case, relative

from ardiff_engine._native import native, why_not
from ardiff_engine.errors import PageTableError, TensorError
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    module = native()
    assert module is not None, why_not()
    before = module.isa()
    module.set_isa(request.param)
    yield request.param
    module.set_isa(before)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_float64(name: str, isa: str) -> None:
    case = CASES[name]
    q, k, v = (x.requires_grad_() for x in case.tensors())
    o, lse = frame_attention(q, k, v, case.table(), return_lse=True)
    want_q, want_k, want_v = (x.detach().double().nan_to_num().requires_grad_() for x in (q, k, v))
    want_o, want_lse = case.oracle(want_q, want_k, want_v)
    assert relative(o, want_o) <= 1e-5
    assert float((lse - want_lse).detach().abs().max()) <= 1e-5
    grad_o, grad_lse = torch.randn_like(o), torch.randn_like(lse)
    got = torch.autograd.grad((o, lse), (q, k, v), (grad_o, grad_lse))
    want = torch.autograd.grad(
        (want_o, want_lse), (want_q, want_k, want_v), (grad_o.double(), grad_lse.double())
    )
    for one, other in zip(got, want, strict=True):
        assert relative(one, other) <= 1e-5


@pytest.mark.parametrize("dim", [1, 7, 8, 36, 64, 72, 80, 128, 256])
def test_head_dims(dim: int, isa: str) -> None:
    case = replace(RAGGED, dim=dim, heads=2, kv_heads=1)
    q, k, v = case.tensors()
    o, lse = frame_attention(q, k, v, case.table(), return_lse=True)
    want_o, want_lse = case.oracle(q, k, v)
    assert relative(o, want_o) <= 1e-5
    assert float((lse - want_lse).abs().max()) <= 1e-5


def test_unseen_pages_may_hold_nan(isa: str) -> None:
    """A failing later frame must not reach the frames before it, though they share a tile with it."""
    case = Case([[3, 3]], [[0, 1]], [[13, 13]], [[1, 2]])
    q, k, v = case.tensors()
    clean = frame_attention(q, k, v, case.table())
    q.requires_grad_()
    grads = torch.autograd.grad(_sum_of_first(q, k, v, case), q)[0]
    k[1], v[1] = NAN, NAN
    poisoned = frame_attention(q.detach(), k, v, case.table())
    assert torch.equal(clean[:3], poisoned[:3])
    assert poisoned[3:].isnan().all()
    assert torch.equal(grads[:3], torch.autograd.grad(_sum_of_first(q, k, v, case), q)[0][:3])


def _sum_of_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case) -> torch.Tensor:
    return frame_attention(q, k, v, case.table())[:3].sum()


def test_gradients_of_a_page_take_nothing_from_frames_that_do_not_see_it(isa: str) -> None:
    """Their gradients may be NaN: a weight of 0 would carry that over."""
    case = Case([[3, 3, 2]], [[0, 1, 2]], [[13, 13, 5]], [[2, 3, 2]])
    q, k, v = (x.requires_grad_() for x in case.tensors())
    grad = torch.randn(8, 4, 16)
    clean = torch.autograd.grad(frame_attention(q, k, v, case.table()), (k, v), grad)
    grad[:3], grad[6:] = NAN, NAN
    poisoned = torch.autograd.grad(frame_attention(q, k, v, case.table()), (k, v), grad)
    for one, other in zip(clean, poisoned, strict=True):
        assert torch.equal(one[2], other[2]) and one[2, :, :5].any()
        assert other[:2].isnan().all()


def test_empty_view_gives_zero_and_minus_infinity(isa: str) -> None:
    case = Case([[3, 4]], [[0]], [[13]], [[0, 1]])
    q, k, v = (x.requires_grad_() for x in case.tensors())
    o, lse = frame_attention(q, k, v, case.table(), return_lse=True)
    assert torch.equal(o[:3], torch.zeros_like(o[:3]))
    assert torch.equal(lse[:3], torch.full_like(lse[:3], -torch.inf))
    dq, dk, dv = torch.autograd.grad(o.sum() + lse[3:].sum(), (q, k, v))
    assert torch.equal(dq[:3], torch.zeros_like(dq[:3]))
    for grad in (dq, dk, dv):
        assert torch.isfinite(grad).all()


def test_minus_infinite_bias_hides_a_page(isa: str) -> None:
    case = Case([[6]], [[0, 1]], [[13, 13]], [[2]], bias=[[-torch.inf, 0.0]])
    q, k, v = case.tensors()
    alone = Case([[6]], [[1]], [[13]], [[1]])
    assert relative(frame_attention(q, k, v, case.table()), alone.oracle(q, k, v)[0]) <= 1e-5
    hidden = Case([[6]], [[0]], [[13]], [[1]], bias=[[-torch.inf]])
    o, lse = frame_attention(q, k, v, hidden.table(), return_lse=True)
    assert torch.equal(o, torch.zeros_like(o)) and (lse == -torch.inf).all()


def test_large_logits_do_not_overflow(isa: str) -> None:
    case = replace(RAGGED, dim=8)
    q, k, v = case.tensors()
    got = frame_attention(q, k, v, case.table(), scale=300.0)
    assert relative(got, case.oracle(q, k, v, scale=300.0)[0]) <= 1e-3  # float32 logits near 2000 carry 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [2e9, -2e9, 1e30, 1e6])
def test_the_reference_with_a_huge_bias_matches_float64(
    bias: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias of all visible pages cancels in the softmax, however large it is; gradients too."""
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    case = Case([[3, 2]], [[4, 1, 7]], [[13, 5, 13]], [[2, 3]], [[bias, bias, bias]])
    plain = replace(case, bias=None)
    inputs = [t.nan_to_num().to(dtype).requires_grad_() for t in case.tensors()]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    o, want = frame_attention(*inputs, case.table()), frame_attention(*wide, plain.table())
    assert relative(o, want) <= 1e-5
    dout = torch.randn_like(want)
    got = torch.autograd.grad(o, inputs, dout.to(dtype))
    for one, other in zip(got, torch.autograd.grad(want, wide, dout), strict=True):
        assert relative(one, other) <= 1e-5


@pytest.mark.parametrize("bias", [2e9, 1e30])
def test_weights_add_up_to_one_with_a_huge_bias(bias: float, isa: str) -> None:
    """The kernels add logits and bias in float32, which may round the logits away, but not the sum."""
    case = Case([[3, 2]], [[4, 1, 7]], [[13, 5, 13]], [[2, 3]], [[bias, bias, bias]])
    q, k, v = (t.nan_to_num() for t in case.tensors())
    o = frame_attention(q, k, torch.ones_like(v), case.table())
    torch.testing.assert_close(o, torch.ones_like(o))


def test_strided_arguments(isa: str) -> None:
    """q as a slice of a fused qkv row, pools as one layer of a larger buffer, a transposed last dimension."""
    q, k, v = RAGGED.tensors()
    want = frame_attention(q, k, v, RAGGED.table())
    wide = torch.full((q.shape[0], 12, 16), NAN)
    wide[:, 4:8] = q
    layers = torch.full((2, 12, 4, 13, 16), NAN)
    layers[1] = k
    assert torch.equal(want, frame_attention(wide[:, 4:8], layers[1], v, RAGGED.table()))
    rows_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(want, frame_attention(q, rows_first, v, RAGGED.table()))
    assert torch.equal(want, frame_attention(q.mT.contiguous().mT, k, v, RAGGED.table()))


def test_no_tokens_and_no_groups() -> None:
    _, k, v = RAGGED.tensors()
    for table in (FrameTable.build([], [], []), FrameTable.build([[0, 0]], [[1]], [[3]])):
        o, lse = frame_attention(torch.empty(0, 4, 16), k, v, table, return_lse=True)
        assert o.shape == (0, 4, 16) and lse.shape == (0, 4)


def test_shared_page_gradient_adds_up_over_groups(isa: str) -> None:
    case = Case([[3], [5]], [[2, 4], [2]], [[13, 3], [9]], [[2], [1]])
    q, k, v = (x.requires_grad_() for x in case.tensors())
    got = torch.autograd.grad(frame_attention(q, k, v, case.table()).sum(), (k, v))
    wide = [x.detach().double().nan_to_num().requires_grad_() for x in (q, k, v)]
    want = torch.autograd.grad(case.oracle(*wide)[0].sum(), wide[1:])
    for one, other in zip(got, want, strict=True):
        assert relative(one, other) <= 1e-5
        assert not one[[0, 1, 3]].any() and not one[4, :, 3:].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_run_on_the_reference(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in RAGGED.tensors())
    o, lse = frame_attention(q, k, v, RAGGED.table(), return_lse=True)
    want_o, want_lse = RAGGED.oracle(q, k, v)
    assert o.dtype == dtype
    assert relative(o, want_o) <= {torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    assert float((lse - want_lse).abs().max()) <= (1e-12 if dtype == torch.float64 else 1e-5)


def _float64_case() -> tuple[tuple[torch.Tensor, ...], FrameTable]:
    case = Case([[2, 1], [2]], [[1, 0], [1]], [[3, 2], [2]], [[1, 2], [1]], [[0.5, 0.0], [0.0]])
    case = replace(case, heads=2, kv_heads=1, dim=3, rows=3, pool=3)
    return tuple(x.double().nan_to_num().requires_grad_() for x in case.tensors()), case.table()


def test_gradcheck_in_float64() -> None:
    inputs, table = _float64_case()
    assert torch.autograd.gradcheck(lambda q, k, v: frame_attention(q, k, v, table, return_lse=True), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    inputs, table = _float64_case()
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in inputs)
    lists = (
        table.frame_ptr,
        table.group_ptr,
        table.page_ptr,
        table.pages,
        table.valid,
        table.seen,
        table.bias,
    )
    torch.library.opcheck(torch.ops.ardiff.frame_attention.default, (q, k, v, *lists, 0.5))
    o, lse = (x.detach() for x in torch.ops.ardiff.frame_attention(q, k, v, *lists, 0.5))
    q, k, v = (x.detach() for x in (q, k, v))
    arguments = (torch.randn_like(o), torch.randn_like(lse), q, k, v, o, lse, *lists, 0.5)
    torch.library.opcheck(torch.ops.ardiff.frame_attention_backward.default, arguments)


def test_scale_and_dlpack_arrays() -> None:
    q, k, v = RAGGED.tensors()
    arrays = (x.numpy() for x in (q, k, v))
    got = frame_attention(*arrays, RAGGED.table(), scale=0.1)  # type: ignore[arg-type]
    assert relative(got, RAGGED.oracle(q, k, v, scale=0.1)[0]) <= 1e-5


def test_the_default_dtype_does_not_matter() -> None:
    q, k, v = RAGGED.tensors()
    want = frame_attention(q, k, v, RAGGED.table())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(want, frame_attention(q, k, v, RAGGED.table()))
    finally:
        torch.set_default_dtype(torch.float32)


def test_misfits_are_typed_errors() -> None:
    q, k, v = RAGGED.tensors()
    table = RAGGED.table()
    for bad in (
        (q[:-1], k, v),
        (q[..., :8], k, v),
        (q, k[..., :8], v),
        (q, k, v[:3]),
        (q.double(), k, v),
        (q.int(), k.int(), v.int()),
        (q[:, :3], k[:, :2], v[:, :2]),
        (q.to("meta"), k.to("meta"), v.to("meta")),
        ("q", k, v),
    ):
        with pytest.raises(TensorError):
            frame_attention(*bad, table)  # type: ignore[arg-type]
    with pytest.raises(PageTableError, match="page id"):
        frame_attention(q, k[:10], v[:10], table)
    with pytest.raises(PageTableError, match="valid"):
        frame_attention(q, k[:, :, :12], v[:, :, :12], table)


def test_a_table_changed_after_it_was_built_cannot_read_outside_the_pool() -> None:
    q, k, v = RAGGED.tensors()
    for name in ("pages", "valid", "seen"):
        table = RAGGED.table()
        getattr(table, name)[0] = 10**6
        with pytest.raises(IndexError):
            frame_attention(q, k, v, table)


def test_a_table_edited_after_it_was_built_is_a_typed_error() -> None:
    q, k, v = RAGGED.tensors()
    for name, value in (("pages", k.shape[0]), ("pages", -1), ("valid", k.shape[2] + 1), ("seen", 99)):
        table = RAGGED.table()
        getattr(table, name)[0] = value
        with pytest.raises(PageTableError, match="tensors"):
            frame_attention(q, k, v, table)
        with pytest.raises(PageTableError, match="tensors"):
            frame_attention(q.clone().requires_grad_(), k, v, table)
    table = RAGGED.table()
    o = frame_attention(q.clone().requires_grad_(), k, v, table)
    table.pages.numpy()[0] = k.shape[0]  # not seen by autograd's version counter
    with pytest.raises(PageTableError, match="tensors"):
        o.sum().backward()
