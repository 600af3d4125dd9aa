# SPDX-License-Identifier: Apache-2.0
"""frame_attention: bits that depend on a frame and its view alone, not on ids, threads, chunks or batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers.attention_cases import CASES, ISAS, RAGGED, Case, relative

from ardiff_engine._native import native, why_not
from ardiff_engine.ops.frame_attention import frame_attention


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    module = native()
    assert module is not None, why_not()
    before = module.isa()
    module.set_isa(request.param)
    yield request.param
    module.set_isa(before)


def test_page_ids_do_not_matter(isa: str) -> None:
    case = RAGGED
    q, k, v = (x.requires_grad_() for x in case.tensors())
    order = torch.randperm(case.pool, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    moved = replace(case, pages=[[int(place[p]) for p in row] for row in case.pages])
    k2, v2 = (x.detach()[order].requires_grad_() for x in (k, v))
    one = frame_attention(q, k, v, case.table(), return_lse=True)
    two = frame_attention(q, k2, v2, moved.table(), return_lse=True)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    grad = torch.randn_like(one[0])
    first = torch.autograd.grad(one[0], (q, k, v), grad)
    second = torch.autograd.grad(two[0], (q, k2, v2), grad)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1][order], second[1]) and torch.equal(first[2][order], second[2])


def test_thread_count_does_not_matter(isa: str) -> None:
    case = replace(CASES["block-causal"], dim=72)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            q, k, v = (x.requires_grad_() for x in case.tensors())
            o, lse = frame_attention(q, k, v, case.table(), return_lse=True)
            results.append((o, lse, *torch.autograd.grad(o.square().sum(), (q, k, v))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_long_list_gives_the_same_bits_however_its_chunks_are_run(isa: str) -> None:
    """One tile of queries, 2,400 keys: with 4 threads the chunks run side by side, with 1 in turn; a frame
    that sees the first chunk only, and one that shares the tile with it, equal themselves alone."""
    case = Case(
        [[5, 3, 4]], [[2, 0, 1]], [[700, 800, 900]], [[1, 3, 2]], heads=1, kv_heads=1, rows=900, pool=3
    )
    q, k, v = case.tensors()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(frame_attention(q, k, v, case.table(), return_lse=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    want_o, want_lse = case.oracle(q, k, v)
    assert relative(results[0][0], want_o) <= 1e-5
    assert float((results[0][1] - want_lse).abs().max()) <= 1e-5
    for first, count, seen in ((0, 5, 1), (8, 4, 2)):
        alone = Case([[count]], case.pages, case.valid, [[seen]]).table()
        assert torch.equal(
            results[0][0][first : first + count], frame_attention(q[first : first + count], k, v, alone)
        )


def test_alone_equals_batched(isa: str) -> None:
    q, k, v = RAGGED.tensors()
    together = frame_attention(q, k, v, RAGGED.table())
    alone = Case(RAGGED.tokens[1:2], RAGGED.pages[1:2], RAGGED.valid[1:2], RAGGED.seen[1:2])
    assert torch.equal(together[15:50], frame_attention(q[15:50], k, v, alone.table()))
    frame = Case([[9]], RAGGED.pages[:1], RAGGED.valid[:1], [[2]])
    assert torch.equal(together[5:14], frame_attention(q[5:14], k, v, frame.table()))


def test_split_views_merge_by_lse(isa: str) -> None:
    case = Case([[9]], [[0, 1, 2]], [[13, 13, 4]], [[3]])
    q, k, v = case.tensors()
    parts = [Case([[9]], [[0]], [[13]], [[1]]), Case([[9]], [[1, 2]], [[13, 4]], [[2]])]
    pieces = [frame_attention(q, k, v, part.table(), return_lse=True) for part in parts]
    lse = torch.logaddexp(pieces[0][1], pieces[1][1])
    merged = sum(o * torch.exp(part - lse)[..., None] for o, part in pieces)
    whole, whole_lse = frame_attention(q, k, v, case.table(), return_lse=True)
    assert relative(merged, whole) <= 1e-5
    assert float((lse - whole_lse).abs().max()) <= 1e-5
