# SPDX-License-Identifier: Apache-2.0
"""norm_rope_write_ against float64: q and K within 2e-6 of the largest value's scale, V bit for bit, and
nothing written elsewhere (poisoned pages)."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ConfigError, PageTableError, TensorError
from ardiff_engine.ops.norm_rope import reference_norm_rope
from ardiff_engine.ops.norm_rope_checks import NORMS
from ardiff_engine.ops.norm_rope_write import norm_rope_write_

NAN = float("nan")
LIMIT = 2e-6
ROWS = 5


class Case:
    def __init__(
        self, tokens: int, heads: int, kv_heads: int, dim: int, norm: str, *, rope: bool, bias: bool
    ) -> None:
        torch.manual_seed(tokens + dim)
        width = (heads + 2 * kv_heads) * dim
        self.qkv = torch.randn(tokens, width)
        self.positions = torch.randint(0, 2**31, (tokens,))
        self.options: dict[str, object] = {"heads": heads, "kv_heads": kv_heads, "norm": norm}
        if norm != "none":
            full = norm == "rms_full"
            self.options |= {
                "q_weight": 1 + 0.1 * torch.randn(heads * dim if full else dim),
                "q_bias": 0.1 * torch.randn(heads * dim if full else dim),
                "k_weight": 1 + 0.1 * torch.randn(kv_heads * dim if full else dim),
            }
        if rope:
            self.options["frequencies"] = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        if bias:
            self.options["qkv_bias"] = torch.randn(width)
        pool = tokens // ROWS + 4
        slots = torch.randperm(pool * ROWS)[:tokens]
        slots[1::4] = -1
        self.slots, self.pages = slots, torch.full((2, pool, kv_heads, ROWS, dim), NAN)

    def expected(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in self.options.items()}
        return reference_norm_rope(self.qkv.double(), self.positions, **wide)  # type: ignore[arg-type]

    def run(self) -> torch.Tensor:
        return norm_rope_write_(
            self.qkv, self.pages[0], self.pages[1], self.slots, self.positions, **self.options  # type: ignore[arg-type]
        )  # fmt: skip

    def rows(self, pages: torch.Tensor) -> torch.Tensor:
        return pages.transpose(1, 2).flatten(0, 1)


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
    return bool(((got.double() - want).abs() <= LIMIT * scale).all())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rope", "bias"), [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim"),
    [(1, 1, 1, 2), (7, 4, 2, 10), (33, 16, 16, 72), (9, 12, 3, 128), (0, 2, 2, 8)],
)
def test_writes(norm: str, rope: bool, bias: bool, tokens: int, heads: int, kv_heads: int, dim: int) -> None:
    case = Case(tokens, heads, kv_heads, dim, norm, rope=rope, bias=bias)
    q, k, v = case.expected()
    assert close(case.run(), q)
    written = case.slots >= 0
    k_rows, v_rows = case.rows(case.pages[0]), case.rows(case.pages[1])
    assert close(k_rows[case.slots[written]], k[written])
    if bias:
        assert close(v_rows[case.slots[written]], v[written])
    else:
        assert torch.equal(v_rows[case.slots[written]], v[written].float())
    untouched = torch.ones(k_rows.shape[0], dtype=torch.bool)
    untouched[case.slots[written]] = False
    assert torch.isnan(k_rows[untouched]).all() and torch.isnan(v_rows[untouched]).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("position", [0, 1, 999, 2**20 + 1, 2**31 - 1])
def test_angles_are_exact_at_any_position(position: int) -> None:
    """Against arbitrary-precision sines: the angle is the float64 product, reduced without loss."""
    import decimal

    case = Case(1, 1, 1, 64, "none", rope=True, bias=False)
    case.positions.fill_(position)
    frequencies = case.options["frequencies"]
    assert isinstance(frequencies, torch.Tensor)
    decimal.getcontext().prec = 60
    tau = 2 * decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    reduced = [float(decimal.Decimal(position * f) % tau) for f in frequencies.tolist()]
    angle = torch.tensor(reduced, dtype=torch.float64)
    case.qkv.zero_()
    case.qkv[0, 0:64:2] = 1
    q = case.run()[0, 0].double()
    assert (q[0::2] - angle.cos()).abs().max() <= 3e-7 and (q[1::2] - angle.sin()).abs().max() <= 3e-7


@pytest.mark.usefixtures("isa")
def test_one_layer_of_a_strided_pool() -> None:
    case = Case(12, 2, 2, 8, "layer", rope=True, bias=False)
    pool = torch.full((3, 9, 4, 2, ROWS + 2, 8), NAN)
    k_pages, v_pages = pool[1, :, 0, :, :ROWS], pool[1, :, 3, :, :ROWS]
    case.slots = torch.arange(12)
    norm_rope_write_(case.qkv, k_pages, v_pages, case.slots, case.positions, **case.options)  # type: ignore[arg-type]
    _, k, v = case.expected()
    assert close(case.rows(k_pages)[:12], k) and torch.equal(case.rows(v_pages)[:12], v.float())
    assert torch.isfinite(pool).sum() == 2 * 12 * 2 * 8


def test_threads_and_neighbours_do_not_change_a_bit() -> None:
    case, before = Case(120, 16, 16, 72, "layer", rope=True, bias=True), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, pages = case.run(), case.pages.clone()
        torch.set_num_threads(3)
        assert torch.equal(one, case.run()) and torch.equal(pages.nan_to_num(), case.pages.nan_to_num())
    finally:
        torch.set_num_threads(before)
    case.qkv, case.slots, case.positions = case.qkv[5:9], case.slots[5:9], case.positions[5:9]
    assert torch.equal(one[5:9], case.run())


def test_norm_rope_gradcheck() -> None:
    for norm in NORMS:
        case = Case(3, 2, 1, 4, norm, rope=True, bias=True)
        case.positions.remainder_(100)
        wide = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in case.options.items()}
        torch.autograd.gradcheck(
            lambda x, wide=wide, case=case: reference_norm_rope(x, case.positions, **wide),  # type: ignore[arg-type]
            (case.qkv.double().requires_grad_(),),
        )


def test_rope_depends_on_differences_only() -> None:
    case = Case(2, 1, 1, 16, "none", rope=True, bias=False)
    products = []
    for shift in (0, 12345):
        case.positions = torch.tensor([3, 10]) + shift
        q, k, _ = case.expected()
        products.append((q[0, 0] @ k[1, 0]).item())
    assert abs(products[0] - products[1]) < 1e-9


@pytest.mark.usefixtures("isa")
def test_axes_turn_their_own_pairs() -> None:
    """Time, height and width, as video networks have them: 10, 6 and 6 of 22 pairs, by complex numbers."""
    case = Case(5, 2, 1, 44, "rms", rope=True, bias=True)
    case.positions = torch.tensor([[0, 0, 0], [2**31 - 1, 3, 1], [7, 0, 11], [100, 29, 51], [1, 1, 1]])
    pairs = (10, 6, 6)
    rates = [10000.0 ** (-torch.arange(n, dtype=torch.float64) / n) for n in pairs]
    case.options["frequencies"] = torch.block_diag(*rates)
    assert case.options["frequencies"].shape == (3, 22)
    q, (k_pages, _) = case.run(), case.pages
    unturned = Case(5, 2, 1, 44, "rms", rope=False, bias=True).expected()
    angles = torch.cat([case.positions[:, axis, None] * rates[axis] for axis in range(3)], dim=1)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    turned = [torch.view_as_complex(z.unflatten(2, (-1, 2)).contiguous()) * turn for z in unturned[:2]]
    want_q, want_k = (torch.view_as_real(z).flatten(2) for z in turned)
    written = case.slots >= 0
    assert close(q, want_q) and close(case.rows(k_pages)[case.slots[written]], want_k[written])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slots_outside_the_pool_write_nothing(dtype: torch.dtype) -> None:
    case = Case(6, 2, 2, 8, "none", rope=False, bias=False)
    case.qkv, case.pages = case.qkv.to(dtype), case.pages.to(dtype)
    for bad in (-2, case.pages.shape[1] * ROWS):
        case.slots[3] = bad
        with pytest.raises(PageTableError, match="slots"):
            case.run()
    assert torch.isnan(case.pages).all()


def test_wrong_arguments() -> None:
    def case() -> Case:
        return Case(6, 4, 2, 8, "layer", rope=True, bias=False)

    for name, value, error in [
        ("heads", 5, ConfigError),
        ("norm", "batch", ConfigError),
        ("norm", "none", ConfigError),
        ("q_weight", torch.ones(7), TensorError),
        ("frequencies", torch.ones(3, dtype=torch.float64), TensorError),
        ("frequencies", torch.ones(2, 4, dtype=torch.float64), TensorError),
        ("qkv_bias", torch.ones(3), TensorError),
    ]:
        wrong = case()
        wrong.options[name] = value
        with pytest.raises(error):
            wrong.run()
    for name, value in [
        ("qkv", torch.randn(6, 64).requires_grad_()),
        ("positions", torch.zeros(6, dtype=torch.int16)),
        ("slots", torch.zeros(5, dtype=torch.int64)),
        ("pages", torch.zeros(2, 4, 3, ROWS, 8)),
    ]:
        wrong = case()
        setattr(wrong, name, value)
        with pytest.raises(TensorError):
            wrong.run()


@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm: str) -> None:
    case = Case(6, 2, 2, 8, norm, rope=True, bias=True)
    affine = [case.options.get(name) for name in ("q_weight", "q_bias", "k_weight", "k_bias")]
    pages = case.pages.nan_to_num()
    torch.library.opcheck(
        torch.ops.ardiff.norm_rope_write_.default,
        (case.qkv, pages[0].clone(), pages[1].clone(), case.slots, case.positions, 2, 2, norm, *affine, 1e-5,
         case.options["frequencies"], case.options["qkv_bias"]),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["qkv", "k_pages", "v_pages", "q_weight", "k_weight", "q_bias", "qkv_bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_input_loses_its_gradient(name: str, dtype: torch.dtype) -> None:
    case = Case(6, 2, 1, 4, "layer", rope=True, bias=True)
    given = {"qkv": case.qkv, "k_pages": case.pages[0], "v_pages": case.pages[1], **case.options}
    given = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    given[name] = given[name].clone().requires_grad_()
    with pytest.raises(TensorError, match=f"{name}.*norm_rope"):
        norm_rope_write_(**given, slots=case.slots, positions=case.positions)
    with torch.no_grad():
        assert not norm_rope_write_(**given, slots=case.slots, positions=case.positions).requires_grad


def test_arrays_of_other_libraries() -> None:
    case, other = (Case(6, 2, 1, 4, "layer", rope=True, bias=True) for _ in range(2))
    want, pages = case.run(), [page.numpy() for page in other.pages]
    options = {n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in other.options.items()}
    rest = (case.slots.numpy(), case.positions.numpy())
    assert torch.equal(norm_rope_write_(case.qkv.numpy(), *pages, *rest, **options), want)
    assert torch.equal(other.pages.nan_to_num(), case.pages.nan_to_num())
    pages[1] = pages[1].copy()
    pages[1].flags.writeable = False
    with pytest.raises(TensorError, match="v_pages"):
        norm_rope_write_(case.qkv.numpy(), *pages, *rest, **options)
