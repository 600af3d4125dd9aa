# SPDX-License-Identifier: Apache-2.0
"""The blocks of a frozen model as one native call against its own modules, in float64; what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.packed_models import PAGES, ROPE, ROWS, cells, count_calls, model_of, run
from helpers.positions import token_positions
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ArdiffError, PageTableError
from ardiff_engine.models import CellBatch, Tables
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.ops import FrameTable

CONFIGS = {
    "rope": ROPE,
    "share_norm": replace(ROPE, merge="share_norm", positions="absolute"),
    "first_t": replace(ROPE, merge="sharenorm_shift_first_t", positions="absolute", mask="none"),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_pages_are_those_of_the_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    model = model_of(CONFIGS[name])
    out, batch = run(model, torch.float32)
    assert len(calls) == 1
    monkeypatch.delenv("ARDIFF_BACKEND")
    expected, wide = run(model.double(), torch.float64)
    assert len(calls) == 1
    for got, want in ((out, expected), (batch.k_pages, wide.k_pages), (batch.v_pages, wide.v_pages)):
        assert ((got - want).norm() / want.norm()).item() <= 3e-6


def test_bits_do_not_depend_on_threads() -> None:
    model, before = model_of(ROPE), torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(run(model, torch.float32)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("threads", [1, 2])
def test_output_that_nobody_wants_is_left_out_and_nothing_else(threads: int) -> None:
    """Three frames: in turn each of them, and pairs, are fed for their K/V alone."""
    model, before = model_of(replace(ROPE, depth=3)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, whole = run(model, torch.float32)
        for unwanted in ((0,), (1,), (2,), (0, 2), (0, 1), (0, 1, 2)):
            x, batch, tables, condition = cells(model, torch.float32)
            frames = torch.tensor([frame not in unwanted for frame in range(3)])
            wanted = torch.cat([torch.zeros(7, dtype=torch.bool), frames.repeat_interleave(5)])
            with torch.no_grad():
                out = model(x, replace(batch, wanted=wanted), tables, condition)
            out, other = out.reshape(3, -1), expected.reshape(3, -1)
            assert torch.equal(out[frames], other[frames])
            assert not any(torch.equal(out[frame], other[frame]) for frame in unwanted)
            assert torch.equal(batch.k_pages, whole.k_pages) and torch.equal(batch.v_pages, whole.v_pages)
    finally:
        torch.set_num_threads(before)


def test_another_pool_than_the_models_is_not_written_beyond_its_end() -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    shape = (ROPE.depth + 1, *batch.k_pages.shape[1:])
    guarded = [torch.full(shape, 7.0), torch.full(shape, 7.0)]
    model.blocks.append(copy.deepcopy(model.layers[0]))
    model.freeze()
    batch = replace(batch, k_pages=guarded[0][:-1], v_pages=guarded[1][:-1])
    (layers,) = tables.parts
    with torch.no_grad(), pytest.raises(IndexError):
        model(x, batch, Tables((torch.cat([layers, layers[:1]]),)), condition)
    assert all(bool((pages[-1] == 7.0).all()) for pages in guarded)


def every_other(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t + 1], dim=-1)[..., 0]


@pytest.mark.parametrize(
    "change",
    [
        {"slots": every_other},
        {"frame_ids": every_other},
        {"v_pages": lambda v: v.transpose(2, 3).contiguous().transpose(2, 3)},
        {"k_pages": every_other, "v_pages": every_other},
        {"frame_ids": torch.Tensor.long},
        {"slots": lambda slots: slots[:10]},
        {"k_pages": lambda k: k.double(), "v_pages": lambda v: v.double()},
        {"k_pages": lambda k: k[:, :, :2].contiguous(), "v_pages": lambda v: v[:, :, :2].contiguous()},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_batch_of_another_form_gives_what_the_ops_give(
    change: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, or the same typed error."""

    def outcome() -> torch.Tensor | str:
        model = model_of(ROPE)
        x, batch, tables, condition = cells(model, torch.float32)
        batch = replace(batch, **{name: form(getattr(batch, name)) for name, form in change.items()})
        try:
            with torch.no_grad():
                return model(x, batch, tables, condition)
        except ArdiffError as error:
            return str(error)

    got = outcome()
    monkeypatch.setattr(NativeBlocks, "takes", lambda *given: False)
    expected = outcome()
    assert type(got) is type(expected)
    assert got == expected if isinstance(got, str) else torch.allclose(got, expected, atol=1e-5)


def test_the_reference_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    run(model_of(ROPE), torch.float32)
    assert not calls


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("slots", PAGES * ROWS, "slot"), ("slots", -2, "slot"), ("frame_ids", 99, "frame id")],
)
def test_bad_numbers_are_found_before_anything_is_written(field: str, value: int, message: str) -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    getattr(batch, field)[-1] = value
    k = batch.k_pages.clone()
    with torch.no_grad(), pytest.raises(PageTableError, match=message):
        model(x, batch, tables, condition)
    assert torch.equal(batch.k_pages, k)


def test_a_table_of_another_batch_is_found() -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    for table in (
        FrameTable.build([21], [[3]], [[7]]),
        FrameTable.build([22], [[PAGES]], [[7]]),
        FrameTable.build([22], [[3]], [[ROWS + 1]]),
    ):
        with torch.no_grad(), pytest.raises(PageTableError, match="table"):
            model(x, replace(batch, table=table), tables, condition)


def test_more_tokens_than_a_chunk_change_no_bits() -> None:
    """The block goes over chunks of 128 rows per thread: each frame gives what it gives alone."""
    model, frames, length = model_of(ROPE), 90, ROPE.tokens_per_frame
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(frames * length, ROPE.channels, generator=generator)
    with torch.no_grad():
        tables = model.tables(torch.linspace(0, 999, 7))

    def run(chosen: range) -> torch.Tensor:
        count, pages = len(chosen), torch.zeros(2, ROPE.depth, frames, ROPE.heads, ROWS, ROPE.head_dim)
        own = [[frame] for frame in chosen]
        batch = CellBatch(
            num_contexts=0,
            slots=(torch.tensor(own) * ROWS + torch.arange(length)).reshape(-1),
            positions=token_positions(chosen, length),
            frame_ids=(torch.tensor(chosen, dtype=torch.int32) % 8).repeat_interleave(length),
            table=FrameTable.build([length] * count, own, [[length]] * count),
            k_pages=pages[0],
            v_pages=pages[1],
        )
        with torch.no_grad():
            return model(x[chosen.start * length : chosen.stop * length], batch, tables)

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            whole = run(range(frames))
            for first in (0, 25, 51, 77, 89):
                own = slice(first * length, (first + 1) * length)
                assert torch.equal(run(range(first, first + 1)), whole[own]), (threads, first)
    finally:
        torch.set_num_threads(before)
