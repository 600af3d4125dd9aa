# SPDX-License-Identifier: Apache-2.0
"""Blocks of every make as one native call, against the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from helpers.positions import token_positions
from native_isa import isa  # noqa: F401
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError, PageTableError
from ardiff_engine.models import CellBatch
from ardiff_engine.models.cell_batch import ConditionPages
from ardiff_engine.models.dit.block_ops import run_blocks
from ardiff_engine.models.dit.block_spec import Attention, BlockSpec, Branch, Heads, Mlp
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.ops import FrameTable

ROWS, PAGES, LAYERS, VALUES = 8, 7, 2, 6
FRAMES, TOKENS, TEXT = 3, 6, 11
FREQUENCIES = 50.0 ** -torch.linspace(0, 1, 8, dtype=torch.float64)


@dataclass(frozen=True)
class Make:
    """One kind of block."""

    width: int = 40
    heads: int = 3
    kv_heads: int = 3
    dim: int = 16
    norm: str = "none"
    parts: int = 1
    bias: bool = True
    row_norm: str = "layer"
    modulated: bool = True
    affine: bool = False
    cross: bool = False
    activation: str = "gelu_tanh"
    replaces: bool = False
    axes: int | None = 1


MAKES = {
    "plain": Make(),
    "wan": Make(width=48, norm="rms_full", parts=3, cross=True, axes=3),
    "heads per norm, grouped": Make(heads=4, kv_heads=2, norm="rms", bias=False, parts=3),
    "layer norm of heads": Make(norm="layer", replaces=True),
    "erf, no gates": Make(activation="gelu_erf", modulated=False, affine=True, axes=None),
    "rms rows, silu": Make(activation="silu", row_norm="rms", modulated=False, heads=2, kv_heads=1),
    "cross, replaced residual": Make(cross=True, replaces=True, row_norm="none", norm="rms"),
    "one head, wide": Make(
        width=100, heads=1, kv_heads=1, dim=16, activation="silu", cross=True, affine=True
    ),
}


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape)


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


def block_of(make: Make) -> BlockSpec:
    inner, kv, size = make.heads * make.dim, make.kv_heads * make.dim, make.dim
    full = make.norm == "rms_full"

    def vector(heads: int) -> Tensor | None:
        return None if make.norm == "none" else 1 + drawn(heads * size if full else size, scale=0.2)

    def heads(kv_heads: int) -> Heads:
        weights = (vector(make.heads), None if full else vector(1), vector(make.kv_heads), None)
        return Heads(make.heads, kv_heads, size, make.norm, 1e-5, *weights)

    def branch(first: int, modulated: bool = make.modulated) -> Branch:
        affine = make.affine or make.cross and not modulated
        weight, bias = (1 + drawn(make.width, scale=0.2), drawn(make.width)) if affine else (None, None)
        if not modulated:
            return Branch(make.row_norm, 1e-6, weight=weight, bias=bias)
        return Branch(make.row_norm, 1e-6, first, first + 1, first + 2)

    outputs = [inner, kv, kv] if make.parts == 3 else [inner + 2 * kv]
    own = tuple(linear(make.width, n, make.bias) for n in outputs)
    cross = None
    if make.cross:
        projection = (linear(make.width, inner, make.bias),)
        cross = Attention(
            branch(0, False), heads(make.kv_heads), projection, linear(inner, make.width, make.bias)
        )
    return BlockSpec(
        Attention(branch(0), heads(make.kv_heads), own, linear(inner, make.width, make.bias)),
        Mlp(branch(3), linear(make.width, 90, make.bias), linear(90, make.width, make.bias), make.activation),
        cross,
        make.replaces,
    )


@dataclass
class Pass:
    h: Tensor
    modulation: Tensor
    cells: CellBatch
    positions: Tensor
    frequencies: Tensor | None


def conditions_of(make: Make) -> ConditionPages | None:
    """Two prompts of 11 rows; the second is the last frame's."""
    if not make.cross:
        return None
    seen = FrameTable.build([[TOKENS] * 2, [TOKENS]], [[0, 1], [2, 3]], [[8, 3], [8, 3]], [[2, 2], [2]])
    held = (LAYERS, 4, make.kv_heads, ROWS, make.dim)
    return ConditionPages(drawn(*held), drawn(*held), (seen,))


def pass_of(make: Make) -> Pass:
    """Three frames: the first sees an old page and itself, the others one more page each. Page 6 is old."""
    order = [2, 5, 0]
    shape = (LAYERS, PAGES, make.kv_heads, ROWS, make.dim)
    table = FrameTable.build([[TOKENS] * FRAMES], [[6, *order]], [[ROWS] + [TOKENS] * FRAMES], [[2, 3, 4]])
    slots = torch.cat([page * ROWS + torch.arange(TOKENS) for page in order])
    tokens = FRAMES * TOKENS
    cells = CellBatch(
        num_contexts=0,
        slots=slots,
        positions=token_positions(range(FRAMES), TOKENS),
        frame_ids=torch.tensor([1, 0, 2], dtype=torch.int32).repeat_interleave(TOKENS),
        table=table,
        k_pages=drawn(*shape),
        v_pages=drawn(*shape),
        conditions=conditions_of(make),
    )
    positions, frequencies = torch.randint(0, 500, (tokens,)), FREQUENCIES if make.axes else None
    if make.axes == 3:
        positions = torch.randint(0, 30, (tokens, 3))
        # Transposed in memory: what is not dense is made so.
        frequencies = torch.block_diag(FREQUENCIES[:4], FREQUENCIES[4:6], FREQUENCIES[6:]).T.contiguous().T
    modulation = drawn(LAYERS, 3, VALUES, make.width, scale=0.5)
    return Pass(drawn(tokens, make.width), modulation, cells, positions, frequencies)


# --- the formula


def row_norm(x: Tensor, branch: Branch) -> Tensor:
    if branch.norm == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=branch.eps)
    return F.rms_norm(x, x.shape[-1:], eps=branch.eps) if branch.norm == "rms" else x


def head_norm(x: Tensor, heads: Heads, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x [T, n, dim]"""
    own = x.flatten(1) if heads.norm == "rms_full" else x
    if heads.norm == "layer":
        own = F.layer_norm(own, own.shape[-1:], eps=heads.eps)
    elif heads.norm != "none":
        own = F.rms_norm(own, own.shape[-1:], eps=heads.eps)
    own = own if weight is None else own * weight.double()
    return (own if bias is None else own + bias.double()).reshape(x.shape)


def attention(q: Tensor, k: Tensor, v: Tensor, table: FrameTable) -> Tensor:
    """q [T, heads, dim], pages [P, kv_heads, rows, dim] -> [T, heads dim]"""
    out, groups = torch.empty_like(q), q.shape[1] // k.shape[1]
    for group in range(table.num_groups):
        for frame in range(*table.group_ptr[group : group + 2].tolist()):
            first, tokens = int(table.page_ptr[group]), slice(*table.frame_ptr[frame : frame + 2].tolist())
            entries = range(first, first + int(table.seen[frame]))
            rows = [(int(table.pages[e]), slice(0, int(table.valid[e]))) for e in entries]
            keys, values = (torch.cat([p[at[0], :, at[1]] for at in rows], dim=1) for p in (k, v))
            keys, values = (t.repeat_interleave(groups, dim=0) for t in (keys, values))
            out[tokens] = F.scaled_dot_product_attention(q[tokens].transpose(0, 1), keys, values).transpose(
                0, 1
            )
    return out.flatten(1)


def turned(z: Tensor, given: Pass) -> Tensor:
    if given.frequencies is None:
        return z
    angles = given.positions.double().reshape(len(z), -1) @ given.frequencies.reshape(-1, z.shape[-1] // 2)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.view_as_complex(z.unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(2)


def apply(layers: tuple[nn.Linear, ...], x: Tensor) -> Tensor:
    parts = [(w.weight.double(), None if w.bias is None else w.bias.double()) for w in layers]
    return torch.cat([F.linear(x, *part) for part in parts], dim=1)


def normed(h: Tensor, branch: Branch, rows: Tensor, replaces: bool) -> tuple[Tensor, Tensor]:
    n = row_norm(h, branch)
    u = n
    if branch.shift is not None:
        u = n * (1 + rows[:, branch.scale]) + rows[:, branch.shift]
    elif branch.weight is not None:
        u = n * branch.weight.double() + branch.bias.double()
    return (n if replaces else h), u


def added(h: Tensor, x: Tensor, branch: Branch, rows: Tensor) -> Tensor:
    return h + (x if branch.gate is None else rows[:, branch.gate] * x)


def expected(specs: list[BlockSpec], given: Pass) -> tuple[Tensor, Tensor, Tensor]:
    h, cells = given.h.double(), given.cells
    k_pages, v_pages = cells.k_pages.double(), cells.v_pages.double()
    page, row = cells.slots // ROWS, cells.slots % ROWS
    for layer, spec in enumerate(specs):
        rows = given.modulation[layer].double()[cells.frame_ids.long()]
        own, heads, replaces = spec.self_attention, spec.self_attention.heads, spec.replaces_residual
        counts = [heads.heads, heads.kv_heads, heads.kv_heads]
        h, u = normed(h, own.branch, rows, replaces)
        q, k, v = apply(own.projections, u).unflatten(1, (-1, heads.dim)).split(counts, dim=1)
        q = turned(head_norm(q, heads, heads.q_weight, heads.q_bias), given)
        k = turned(head_norm(k, heads, heads.k_weight, heads.k_bias), given)
        k_pages[layer][page, :, row], v_pages[layer][page, :, row] = k, v
        seen = attention(q, k_pages[layer], v_pages[layer], cells.table)
        h = added(h, apply((own.out,), seen), own.branch, rows)
        if spec.cross_attention is not None:
            cross, held = spec.cross_attention, cells.conditions
            h, u = normed(h, cross.branch, rows, replaces)
            q = apply(cross.projections, u).unflatten(1, (-1, cross.heads.dim))
            q = head_norm(q, cross.heads, cross.heads.q_weight, cross.heads.q_bias)
            seen = attention(q, held.k[layer].double(), held.v[layer].double(), *held.tables)
            h = added(h, apply((cross.out,), seen), cross.branch, rows)
        h, u = normed(h, spec.mlp.branch, rows, replaces)
        act = {"silu": F.silu, "gelu_erf": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
        hidden = act[spec.mlp.activation](apply((spec.mlp.up,), u))
        h = added(h, apply((spec.mlp.down,), hidden), spec.mlp.branch, rows)
    return h, k_pages, v_pages


def run(blocks: NativeBlocks, given: Pass, cells: CellBatch | None = None) -> tuple[Tensor, Tensor, Tensor]:
    own = replace(
        cells or given.cells, k_pages=given.cells.k_pages.clone(), v_pages=given.cells.v_pages.clone()
    )
    h = given.h.clone()
    with torch.no_grad():
        assert blocks.takes(h, own, given.positions)
        blocks.run(h, given.modulation, own, given.positions, given.frequencies)
    return h, own.k_pages, own.v_pages


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", MAKES)
def test_every_make_gives_the_formula(name: str) -> None:
    torch.manual_seed(0)
    make = MAKES[name]
    specs = [block_of(make) for _ in range(LAYERS)]
    given = pass_of(make)
    with torch.no_grad():
        wanted = expected(specs, given)
        got = run(NativeBlocks(specs), given)
    for one, other in zip(got, wanted, strict=True):
        assert ((one - other).norm() / other.norm()).item() <= 2e-6


@pytest.mark.parametrize("name", MAKES)
def test_unwanted_frames_and_threads_change_no_bit_of_the_others(name: str) -> None:
    torch.manual_seed(1)
    make, before = MAKES[name], torch.get_num_threads()
    blocks, given = NativeBlocks([block_of(make) for _ in range(LAYERS)]), pass_of(make)
    whole, k_pages, _ = run(blocks, given)
    kept = torch.tensor([False, True, False]).repeat_interleave(TOKENS)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            h, k, _ = run(blocks, given, replace(given.cells, wanted=kept))
            assert torch.equal(h[kept], whole[kept]) and torch.equal(k, k_pages)
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_refused() -> None:
    torch.manual_seed(2)
    make = MAKES["wan"]
    spec, given = block_of(make), pass_of(make)
    wrong = {
        "projections": replace(spec.self_attention, projections=spec.self_attention.projections[:2]),
        "out": replace(spec.self_attention, out=nn.Linear(40, 48)),
        "float64": replace(spec.self_attention, out=nn.Linear(48, 48).double()),
    }
    for noun, attention_spec in wrong.items():
        with pytest.raises(ConfigError, match=noun):
            NativeBlocks([replace(spec, self_attention=attention_spec)])
    blocks, given = NativeBlocks([spec] * LAYERS), pass_of(make)
    held = given.cells.conditions
    elsewhere = FrameTable.build([[TOKENS] * FRAMES], [[9]], [[8]], [[1] * FRAMES])
    for conditions in (
        None,
        replace(held, tables=(elsewhere,)),
        replace(held, k=held.k[:1], v=held.v[:1]),
        replace(held, k=held.k.double(), v=held.v.double()),
    ):
        cells = replace(given.cells, conditions=conditions)
        with torch.no_grad(), pytest.raises(PageTableError, match="condition"):
            blocks.run(given.h, given.modulation, cells, given.positions, given.frequencies)


@pytest.mark.parametrize("name", MAKES)
def test_op_by_op_gives_the_formula(name: str) -> None:
    torch.manual_seed(3)
    make = MAKES[name]
    specs, given = [block_of(make) for _ in range(LAYERS)], pass_of(make)
    with torch.no_grad():
        wanted = expected(specs, given)[0]
        rest = (given.modulation, given.cells, given.positions, given.frequencies)
        got = run_blocks(specs, given.h.clone(), *rest)
    assert ((got - wanted).norm() / wanted.norm()).item() <= 3e-6
