# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels against float64 references, emulated on the CPU and, where there is one, on a GPU.

Limits per value: float32 2e-6 of the result's scale; bfloat16 and float16 one unit in the last place of the
rounded float64 result. Page writes, page copies and timesteps are exact.
"""

from __future__ import annotations

import pytest
import torch

from ardiff_engine import ops
from ardiff_engine.errors import KernelError, PageTableError, TensorError
from ardiff_engine.ops import cuda_launch
from ardiff_engine.ops import pages as pages_module
from ardiff_engine.ops.add_noise import TARGETS, reference_add_noise
from ardiff_engine.ops.gate_residual import reference_gate_residual
from ardiff_engine.ops.modulate import reference_modulate
from ardiff_engine.ops.norm_rope import reference_norm_rope
from ardiff_engine.ops.norm_rope import rotate as rotate_reference
from ardiff_engine.ops.philox_normal import reference_philox_normal
from ardiff_engine.ops.sample_timesteps import RULES, reference_sample_timesteps
from ardiff_engine.ops.solver_step import reference_solver_step

pytest_plugins = ["cuda_machine"]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (3, 7), (5, 32, 4), (2, 4097), (70, 24), (0, 8)]
ULP = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(got: torch.Tensor, expected: torch.Tensor, *, absolute: float = 2e-6) -> None:
    """Within a rounding of `got.dtype` of the float64 result; NaN (a value never written) fails."""
    assert got.shape == expected.shape
    error = (got.double().cpu() - expected).abs()
    limit = ULP[got.dtype] * expected.abs() + absolute
    assert bool((error <= limit).all()), f"{(error / limit).max().item():.3g} times the limit"


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def key_rows(rows: int) -> torch.Tensor:
    keys = torch.arange(5 * rows).reshape(rows, 5) * 7919
    keys[:, 0] -= 2**40
    return keys


def frequencies(dim: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def off_by_one(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same values at an address that is not a multiple of 16 bytes."""
    buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)
    buffer[1:] = tensor.flatten()
    return buffer[1:].reshape(tensor.shape)


# Shapes test the grid, targets the formula: each shape with one target, each target with one shape.
NOISINGS = [(shape, TARGETS[-1]) for shape in SHAPES] + [
    (SHAPES[2], target) for target in (None, *TARGETS[:-1])
]


@by_dtype
@pytest.mark.parametrize(("shape", "target"), NOISINGS, ids=str)
@pytest.mark.parametrize("drawn", [False, True])
def test_add_noise(
    machine: torch.device, shape: tuple[int, ...], target: str | None, dtype: torch.dtype, drawn: bool
) -> None:
    x0, noise = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    signal, sigma, keys = random(shape[0], seed=2).abs(), random(shape[0], seed=3).abs(), key_rows(shape[0])
    source = {"keys": keys.to(machine)} if drawn else {"noise": noise.to(machine)}
    got = ops.add_noise(x0.to(machine), signal.to(machine), sigma.to(machine), target=target, **source)
    elements = x0[0].numel() if shape[0] else 8
    eps = reference_philox_normal(keys, elements).reshape(shape) if drawn else noise
    noisy, wanted = reference_add_noise(
        x0.double(), signal.double(), sigma.double(), eps.double(), None, target or ""
    )
    check(got.noisy, noisy, absolute=1e-5)
    assert (got.target is None) == (target is None)
    if got.target is not None:
        check(got.target, wanted, absolute=1e-5)


@pytest.mark.parametrize("elements", [1, 4, 7, 4099])
def test_philox_normal(machine: torch.device, elements: int) -> None:
    keys = key_rows(3)
    check(ops.philox_normal(keys.to(machine), elements), reference_philox_normal(keys, elements).double())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("frames", [1, 5])
def test_sample_timesteps(machine: torch.device, rule: str, frames: int) -> None:
    got = ops.sample_timesteps(67, frames, 30, rule, seed=2**63, first_sample=2**33, device=machine)
    assert torch.equal(got.cpu(), reference_sample_timesteps(67, frames, 30, rule, -(2**63), 2**33))


@by_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("limit", [torch.inf, 0.5])
def test_solver_step(machine: torch.device, shape: tuple[int, ...], limit: float, dtype: torch.dtype) -> None:
    x, outs = random(*shape, dtype=dtype), random(3, *shape, dtype=dtype, seed=1)
    weights, coefficients = random(3, shape[0], seed=2), random(shape[0], 9, seed=3)
    coefficients[:, 8] = torch.inf
    coefficients[::2, 8] = limit
    history = [random(*shape, dtype=dtype, seed=seed) for seed in (4, 5, 6)]
    keys = key_rows(shape[0])
    weights[1] = 0  # what must not be read is NaN
    outs[1] = float("nan")
    if shape[0] > 1:
        coefficients[0, 5] = 0
        history[0][0] = float("nan")
        coefficients[1, 4] = 0
    elements = x[0].numel() if shape[0] else 8
    eps = reference_philox_normal(keys, elements).reshape(shape).double()
    got = ops.solver_step(
        x.to(machine),
        outs.to(machine),
        weights.to(machine),
        coefficients.to(machine),
        history1=history[0].to(machine),
        history2=history[1].to(machine),
        history3=history[2].to(machine),
        keys=keys.to(machine),
    )
    given = (x.double(), outs.double(), weights.double(), coefficients.double())
    result, x0 = reference_solver_step(*given, *(h.double() for h in history), None, eps)
    check(got.x, result, absolute=2e-5)
    check(got.x0, x0, absolute=1e-5)


def test_solver_step_without_a_needed_input_is_nan(machine: torch.device) -> None:
    coefficients = torch.zeros(2, 8)
    coefficients[1, 4] = 1
    x = random(2, 9).to(machine)
    got = ops.solver_step(x, x[None], torch.ones(1, 2, device=machine), coefficients.to(machine))
    assert bool(got.x[1].isnan().all()) and bool((got.x[0] == 0).all())


HEADS = [(2, 1, 10), (16, 16, 72), (3, 3, 128), (20, 4, 256), (1, 1, 2)]
WIDTHS = [1, 10, 72, 1152, 2051, 4097]


@by_dtype
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("width", WIDTHS)
def test_modulate(machine: torch.device, width: int, norm: str, dtype: torch.dtype) -> None:
    x, table = 3 * random(5, width, dtype=dtype) + 1, random(4, 2 * width, dtype=dtype, seed=1)
    ids = torch.tensor([3, 0, 0, 2, 1], dtype=torch.int32)
    on = table.to(machine)
    shift, scale = on[:, :width], on[:, width:]  # rows are strided, and odd widths misalign them
    y, normed = ops.modulate(
        off_by_one(x, machine), shift, scale, ids.to(machine), norm=norm, eps=1e-6, return_normed=True
    )
    wide = table.double()
    expected = reference_modulate(x.double(), wide[:, :width], wide[:, width:], ids, norm, 1e-6)
    check(y, expected[0], absolute=2e-5)
    check(normed, expected[1], absolute=1e-5)
    alone = ops.modulate(x[3:4].to(machine), shift, scale, ids[3:4].to(machine), norm=norm, eps=1e-6)
    assert torch.equal(alone[0], y[3])


def test_modulate_of_mixed_dtypes_keeps_the_tables_bits(machine: torch.device) -> None:
    x, table = random(6, 40, dtype=torch.bfloat16), random(2, 40, seed=1)
    ids = torch.zeros(6, dtype=torch.int32)
    y = ops.modulate(x.to(machine), table.to(machine), table.to(machine), ids.to(machine))
    wide = table.double()
    check(y, reference_modulate(x.double(), wide, wide, ids, "layer", 1e-6)[0], absolute=1e-5)
    assert y.dtype == torch.bfloat16


@by_dtype
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("in_place", [False, True])
def test_gate_residual(machine: torch.device, width: int, in_place: bool, dtype: torch.dtype) -> None:
    residual, branch = random(5, width, dtype=dtype), random(5, width, dtype=dtype, seed=1)
    gate, bias = random(4, width, dtype=dtype, seed=2), random(width, dtype=dtype, seed=3)
    ids = torch.tensor([3, 0, 0, 2, 1], dtype=torch.int32)
    target = residual.to(machine, copy=True)
    call = ops.gate_residual_ if in_place else ops.gate_residual
    got = call(target, branch.to(machine), gate.to(machine), ids.to(machine), bias=bias.to(machine))
    assert (got is target) == in_place
    wide = [value.double() for value in (residual, branch, gate)]
    check(got, reference_gate_residual(*wide, ids, bias.double()), absolute=1e-5)
    plain = ops.gate_residual(residual.to(machine), branch.to(machine), gate.to(machine), ids.to(machine))
    check(plain, reference_gate_residual(*wide, ids, None), absolute=1e-5)


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_bad_frame_id_gives_nan_and_is_reported(machine: torch.device, bad: int) -> None:
    x, table = random(3, 20).to(machine), random(3, 20, seed=1).to(machine)
    ids = torch.tensor([0, bad, 2], dtype=torch.int32, device=machine)
    for call in (ops.modulate, ops.gate_residual):
        got = call(x, table, table, ids)
        assert bool(got[1].isnan().all()) and not bool(got[[0, 2]].isnan().any())
        with pytest.raises(PageTableError, match="frame id"):
            ops.check_device(machine)
    ops.check_device(machine)


@by_dtype
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "rms_full"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), HEADS)
def test_norm_rope_write(
    machine: torch.device, heads: int, kv_heads: int, dim: int, norm: str, dtype: torch.dtype
) -> None:
    tokens, pool, rows = 4, 5, 3
    width = (heads + 2 * kv_heads) * dim
    qkv = random(tokens, width, dtype=dtype)
    sizes = (heads * dim, kv_heads * dim) if norm == "rms_full" else (dim, dim)
    weights = dict.fromkeys(("q_weight", "q_bias", "k_weight", "k_bias"))
    if norm != "none":
        for index, name in enumerate(list(weights)):
            weights[name] = random(sizes[index // 2], dtype=dtype, seed=10 + index)
    qkv_bias = random(width, dtype=dtype, seed=5) if norm == "layer" else None
    slots, positions = torch.tensor([7, 0, -1, 14]), torch.tensor([0, 5, 100_000, 3])
    rates = frequencies(dim)
    if norm == "rms_full":
        positions = torch.stack([positions, torch.tensor([1, 2, 3, 4]), torch.tensor([9, 0, 7, 5])], dim=1)
        rates = torch.stack([torch.where(torch.arange(dim // 2) % 3 == axis, rates, 0) for axis in range(3)])
    k_pages, v_pages = random(2, pool, kv_heads, rows, dim, dtype=dtype, seed=6)
    k_on, v_on = k_pages.to(machine, copy=True), v_pages.to(machine, copy=True)
    place = lambda value: None if value is None else value.to(machine)  # noqa: E731
    q = ops.norm_rope_write_(
        qkv.to(machine),
        k_on,
        v_on,
        slots.to(machine),
        positions.to(machine),
        heads=heads,
        kv_heads=kv_heads,
        norm=norm,
        frequencies=rates.to(machine),
        qkv_bias=place(qkv_bias),
        **{name: place(value) for name, value in weights.items()},
    )
    wide = {name: None if value is None else value.double() for name, value in weights.items()}
    expected_q, expected_k, expected_v = reference_norm_rope(
        qkv.double(),
        positions,
        heads=heads,
        kv_heads=kv_heads,
        norm=norm,
        frequencies=rates,
        qkv_bias=None if qkv_bias is None else qkv_bias.double(),
        **wide,
    )
    check(q, expected_q, absolute=2e-5)
    k_now, v_now = k_on.cpu(), v_on.cpu()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            check(k_now[slot // rows, :, slot % rows], expected_k[token], absolute=2e-5)
            stored = v_now[slot // rows, :, slot % rows]
            if qkv_bias is None:
                assert torch.equal(stored, qkv[token, -kv_heads * dim :].reshape(kv_heads, dim))
            check(stored, expected_v[token], absolute=1e-5)
            k_now[slot // rows, :, slot % rows] = k_pages[slot // rows, :, slot % rows]
            v_now[slot // rows, :, slot % rows] = v_pages[slot // rows, :, slot % rows]
    assert torch.equal(k_now, k_pages) and torch.equal(v_now, v_pages)


@pytest.mark.parametrize("bad", [-2, 15, 2**40])
def test_a_bad_slot_writes_nothing_and_is_reported(machine: torch.device, bad: int) -> None:
    pages = random(2, 5, 1, 3, 8).to(machine)
    before, qkv = pages.clone(), random(2, 24, seed=1).to(machine)
    slots, positions = torch.tensor([bad, 4]).to(machine), torch.tensor([0, 1]).to(machine)
    q = ops.norm_rope_write_(qkv, pages[0], pages[1], slots, positions, heads=1)
    assert torch.equal(q[:, 0], qkv[:, :8])
    assert torch.equal(pages[0, 1, 0, 1], qkv[1, 8:16])
    pages[:, 1, 0, 1] = before[:, 1, 0, 1]
    assert torch.equal(pages, before)
    with pytest.raises(PageTableError, match="slot"):
        ops.check_device(machine)


def test_norm_rope_write_refuses_what_the_kernel_cannot_take(machine: torch.device) -> None:
    pages = random(2, 5, 1, 3, 8).to(machine)
    slots = torch.zeros(2, dtype=torch.int64, device=machine)
    with pytest.raises(TensorError, match="k_pages"):
        ops.norm_rope_write_(random(2, 24).bfloat16().to(machine), *pages, slots, slots, heads=1)
    wide = random(2, 5, 1, 3, 300).to(machine)
    with pytest.raises(TensorError, match="at most 256"):
        ops.norm_rope_write_(random(2, 900).to(machine), *wide, slots, slots, heads=1)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("dim", [1, 10, 72])
def test_copy_pages(machine: torch.device, dim: int, dtype: torch.dtype) -> None:
    pool = torch.arange(2 * 3 * 9 * 2 * 5 * dim).reshape(2, 3, 9, 2, 5, dim).to(dtype)
    k, v = pool.to(machine, copy=True)
    ops.copy_pages_(k, v, torch.tensor([0, 0, 4]).to(machine), torch.tensor([7, 2, 1]).to(machine))
    for now, before in ((k.cpu(), pool[0]), (v.cpu(), pool[1])):
        expected = before.clone()
        expected[:, [7, 2, 1]] = before[:, [0, 0, 4]]
        assert torch.equal(now, expected)


@by_dtype
@pytest.mark.parametrize("dim", [2, 10, 72, 128])
@pytest.mark.parametrize("from_source", [False, True])
def test_rotate_pages(machine: torch.device, dim: int, from_source: bool, dtype: torch.dtype) -> None:
    pool, source = random(3, 9, 2, 5, dim, dtype=dtype), random(3, 3, 2, 5, dim, dtype=dtype, seed=1)
    pages, deltas = torch.tensor([6, 0, 3]), torch.tensor([-3, 2**31 - 1, 77])
    k = pool.to(machine, copy=True)
    given = source.to(machine) if from_source else None
    ops.rotate_pages_(k, pages.to(machine), deltas.to(machine), frequencies(dim).to(machine), source=given)
    angle = (deltas.double()[:, None] * frequencies(dim))[:, None, None]
    plain = (source if from_source else pool[:, pages]).double()
    check(k[:, pages.to(machine)], rotate_reference(plain, angle.cos(), angle.sin()), absolute=1e-5)
    others = [1, 2, 4, 5, 7, 8]
    assert torch.equal(k.cpu()[:, others], pool[:, others])


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_bad_pages_are_left_alone_and_reported(
    machine: torch.device, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for check_ids in ("_check_pages", "_check_copy"):  # these read ids, where they are on the CPU
        monkeypatch.setattr(pages_module, check_ids, lambda *_, **__: None)
    k, v = random(2, 3, 9, 2, 5, 8).to(machine)
    before = torch.stack([k, v]).clone()
    src, dst = torch.tensor([bad, 0, 4]).to(machine), torch.tensor([1, 2, bad]).to(machine)
    ops.copy_pages_(k, v, src, dst)
    assert torch.equal(k[:, 2], before[0][:, 0]) and torch.equal(v[:, 2], before[1][:, 0])
    with pytest.raises(PageTableError, match="copy_pages_"):
        ops.check_device(machine)
    k[:, 2], v[:, 2] = before[0][:, 2], before[1][:, 2]
    assert torch.equal(torch.stack([k, v]), before)
    ops.rotate_pages_(k, src, torch.ones_like(src), frequencies(8).to(machine))
    assert torch.equal(k[:, [1, 2, 3, 5, 6, 7, 8]], before[0][:, [1, 2, 3, 5, 6, 7, 8]])
    assert not torch.equal(k[:, 0], before[0][:, 0])
    with pytest.raises(PageTableError, match="rotate_pages_"):
        ops.check_device(machine)


@pytest.mark.gpu
def test_more_rows_than_a_grid_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen million threads: too many to emulate."""
    monkeypatch.setenv("ARDIFF_BACKEND", "cuda")
    rows = 65535 * 8 + 3
    residual, gate = torch.zeros(rows, 1, device="cuda"), torch.full((1, 1), 2.0, device="cuda")
    branch = torch.arange(rows, device="cuda", dtype=torch.float32)[:, None]
    ids = torch.zeros(rows, dtype=torch.int32, device="cuda")
    assert torch.equal(ops.gate_residual(residual, branch, gate, ids), 2 * branch)


def test_repeated_runs_are_equal_bit_for_bit(machine: torch.device) -> None:
    x, table = random(40, 1152).to(machine), random(3, 1152, seed=1).to(machine)
    ids = (torch.arange(40, dtype=torch.int32) % 3).to(machine)
    first = ops.modulate(x, table, table, ids)
    assert all(torch.equal(ops.modulate(x, table, table, ids), first) for _ in range(3))


def test_a_refused_launch_is_a_typed_error(machine: torch.device) -> None:
    x = random(1, 8193).to(machine)
    ids = torch.zeros(1, dtype=torch.int32, device=machine)
    with pytest.raises(TensorError, match="at most 8192"):
        ops.modulate(x, x, x, ids)
    bits = cuda_launch.error_bits(machine).data_ptr()
    pointers = [x.data_ptr()] * 3 + [ids.data_ptr(), x.data_ptr(), 0]
    with pytest.raises(KernelError, match="cudaErrorInvalidValue"):
        cuda_launch.launch_for("modulate", x, *pointers, 1, 8193, 1, 8193, 8193, 1, 1e-6, bits)
    with pytest.raises(TensorError, match="float64"):
        cuda_launch.launch_for("modulate", x.double())
