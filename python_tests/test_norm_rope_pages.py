# SPDX-License-Identifier: Apache-2.0
"""norm_rope_pages: its kernels against the PyTorch formula in float64, and both against norm_rope_write_."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError, PageTableError, TensorError
from ardiff_engine.ops.norm_rope import affine_sizes
from ardiff_engine.ops.norm_rope_pages import reference_norm_rope_pages

# (tokens, heads, kv_heads, head dim, pages, page rows)
SIZES = [
    (1, 1, 1, 4, 1, 1),
    (9, 2, 1, 10, 4, 3),
    (70, 3, 3, 64, 20, 8),
    (200, 4, 2, 72, 9, 32),
    (33, 2, 2, 16, 5, 7),
]
NORMS = [("none", False), ("layer", True), ("layer", False), ("rms", True)]
LEAVES = ("qkv", "q_weight", "q_bias", "k_weight", "k_bias")


def inputs(size: tuple[int, ...], norm: str, affine: bool, rope: bool) -> dict:
    tokens, heads, kv_heads, dim, pages, rows = size
    generator = torch.Generator().manual_seed(tokens)
    slots = torch.randperm(pages * rows, generator=generator)[:tokens]
    slots[::5] = -1  # dropped
    weights = {name: torch.randn(dim, generator=generator) for name in LEAVES[1:]} if affine else {}
    return {
        "qkv": 2 * torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=generator) + 0.5,
        "slots": slots,
        "positions": torch.randint(0, 5000, (tokens,), generator=generator),
        "num_pages": pages,
        "page_rows": rows,
        "heads": heads,
        "kv_heads": kv_heads,
        "norm": norm,
        "eps": 1e-5,
        "frequencies": 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / dim) if rope else None,
        **weights,
    }


def run(given: dict, dtype: torch.dtype, function) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and gradients of all leaves for random gradients of the outputs."""
    leaves = {n: given[n].to(dtype).requires_grad_() for n in LEAVES if n in given}
    outs = function(**{**given, **leaves})
    generator = torch.Generator().manual_seed(1234)
    gradients = [torch.randn(out.shape, generator=generator).to(dtype) for out in outs]
    return [out.detach() for out in outs], list(torch.autograd.grad(outs, list(leaves.values()), gradients))


def reference(**given) -> tuple[torch.Tensor, ...]:
    weights = {name: given.get(name) for name in LEAVES[1:]}
    return reference_norm_rope_pages(**{**given, **weights})


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize(("norm", "affine"), NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_against_the_formula_in_float64(size: tuple[int, ...], norm: str, affine: bool, rope: bool) -> None:
    given = inputs(size, norm, affine, rope)
    outs, gradients = run(given, torch.float32, ops.norm_rope_pages)
    expected, expected_gradients = run(given, torch.float64, reference)
    for got, want in zip(outs, expected, strict=True):
        assert got.shape == want.shape and relative(got, want) <= 2e-6
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert relative(got, want) <= 1e-5


@pytest.mark.usefixtures("isa")
def test_pages_are_those_of_norm_rope_write() -> None:
    given = inputs(SIZES[3], "layer", True, True)
    own = ("qkv", "slots", "positions", "num_pages", "page_rows")
    options = {name: value for name, value in given.items() if name not in own}
    with torch.no_grad():
        q, k, v = ops.norm_rope_pages(**given)
        pages = torch.zeros_like(k), torch.zeros_like(v)
        written = ops.norm_rope_write_(given["qkv"], *pages, given["slots"], given["positions"], **options)
    assert torch.equal(q, written) and torch.equal(k, pages[0]) and torch.equal(v, pages[1])


@pytest.mark.usefixtures("isa")
def test_bits_do_not_depend_on_threads() -> None:
    given, before = inputs((900, 4, 4, 64, 30, 32), "layer", True, True), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(given, torch.float32, ops.norm_rope_pages))
    finally:
        torch.set_num_threads(before)
    for outs, gradients in results[1:]:
        for got, first in zip(outs + gradients, results[0][0] + results[0][1], strict=True):
            assert torch.equal(got, first)


def test_full_width_norms_and_other_dtypes_run_on_the_formula() -> None:
    given = inputs(SIZES[1], "rms_full", False, True)
    given["q_weight"], given["k_weight"] = torch.randn(20), torch.randn(10)
    outs, _ = run(given, torch.float32, ops.norm_rope_pages)
    expected, _ = run(given, torch.float64, reference)
    assert all(relative(a, b) <= 2e-6 for a, b in zip(outs, expected, strict=True))
    half = {**inputs(SIZES[1], "none", False, True), "qkv": torch.randn(9, 40).bfloat16()}
    assert ops.norm_rope_pages(**half)[0].dtype == torch.bfloat16


def test_arrays_of_other_libraries() -> None:
    given = inputs(SIZES[1], "layer", True, True)
    arrays = {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    with torch.no_grad():
        expected, got = ops.norm_rope_pages(**given), ops.norm_rope_pages(**arrays)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_it_can_be_traced() -> None:
    given = inputs(SIZES[1], "layer", True, True)
    traced = torch.compile(ops.norm_rope_pages, backend="eager", fullgraph=True)
    for got, expected in zip(traced(**given), ops.norm_rope_pages(**given), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_opcheck() -> None:
    given = inputs(SIZES[1], "layer", True, True)
    qkv = given["qkv"].requires_grad_()
    weights = [given[name].requires_grad_() for name in LEAVES[1:]]
    sizes = (4, 3, 2, 1, 10, "layer")
    arguments = (qkv, given["slots"], given["positions"], *sizes, *weights, 1e-5, given["frequencies"])
    torch.library.opcheck(torch.ops.ardiff.norm_rope_pages.default, arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slots": torch.full((9,), 12)}, PageTableError, "slots: got 12, expected -1..11"),
        ({"slots": torch.full((9,), -2)}, PageTableError, "slots: got -2"),
        ({"slots": torch.zeros(9)}, TensorError, "slots"),
        ({"slots": torch.zeros(8, dtype=torch.int64)}, TensorError, "slots"),
        ({"page_rows": 0}, TensorError, "page_rows"),
        ({"norm": "batch"}, ConfigError, "norm"),
        ({"heads": 7}, ConfigError, "head counts"),
        ({"positions": torch.zeros(9)}, TensorError, "positions"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.norm_rope_pages(**{**inputs(SIZES[1], "layer", True, True), **change})


@pytest.mark.parametrize("norm", ["none", "layer", "rms", "rms_full"])
def test_the_explicit_backward_is_that_of_the_formula(norm: str) -> None:
    """What a pass backward runs on where no kernel takes it: against autograd, in float64."""
    given = inputs(SIZES[1], norm, False, True)
    _, heads, kv_heads, dim, pages, rows = SIZES[1]
    counts = affine_sizes(heads, kv_heads, dim, norm)
    weights = [torch.randn(n).double().requires_grad_() if norm != "none" else None for n in counts]
    qkv = given["qkv"].double().requires_grad_()
    leaves = [qkv, *(w for w in weights if w is not None)]
    sizes = (given["slots"], given["positions"], pages, rows, heads, kv_heads)
    rest = (norm, *weights, 1e-5, given["frequencies"])
    want = reference_norm_rope_pages(qkv, *sizes, *rest)
    got = torch.ops.ardiff.norm_rope_pages(qkv, *sizes, dim, *rest)
    gradients = [torch.randn_like(out) for out in want]
    expected = torch.autograd.grad(want, leaves, gradients)
    for one, other in zip(torch.autograd.grad(got, leaves, gradients), expected, strict=True):
        assert relative(one, other) <= 1e-12
