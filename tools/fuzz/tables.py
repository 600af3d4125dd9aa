# SPDX-License-Identifier: Apache-2.0
"""Random page tables, slots and page lists, right ones and wrong ones, through every op that takes them.

    python -m tools.fuzz.tables --cases 20000 --seed 1      # a campaign
    python -m tools.fuzz.tables --seed 1 --case 417         # one case again, with its traceback

A case that follows the rules must agree with the formula in float64. One that breaks them must be an
`ArdiffError`, and what it would have written must hold the bits that it held before. Cases run in this
process: a crash ends it.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from ardiff_engine import ops
from ardiff_engine.errors import ArdiffError
from ardiff_engine.ops import FrameTable
from ardiff_engine.ops.frame_attention_reference import reference_frame_attention
from ardiff_engine.ops.norm_rope import reference_norm_rope

Tensor = torch.Tensor
INTEGERS = (-1, -2, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**40, 2**63 - 1, 2**63, 10**30)
ODD = (
    None, 1.5, 3.0, float("nan"), float("inf"), "1", "", b"1", [], [1], (), {}, {1: 2}, object(), True, 2j,
    Fraction(3), np.int8(1), np.int64(-1), np.uint64(2**63), np.float32(1), np.nan, np.array([1, 2]),
    np.array(3), np.array(["a"]), torch.tensor(2), torch.tensor([1, 2]), torch.tensor(1.5),
    torch.tensor([]), range(3),
)  # fmt: skip
LIMIT = 2e-5
"""Relative L2 of float32 results."""


def attention(rng: random.Random) -> str:
    """A FrameTable by one of its three doors, then attention over it."""
    groups = rng.randint(0, 4)
    pool, rows = rng.randint(1, 6), rng.randint(1, 5)
    tokens = [[rng.randint(0, 4) for _ in range(rng.randint(0, 3))] for _ in range(groups)]
    pages = [[rng.randrange(pool) for _ in range(rng.randint(0, 5))] for _ in range(groups)]
    valid = [[rng.randint(0, rows) for _ in own] for own in pages]
    seen = [[rng.randint(0, len(own)) for _ in frames] for frames, own in zip(tokens, pages, strict=True)]
    bias: Any = [[rng.choice((0.0, rng.gauss(0, 3), -np.inf)) for _ in own] for own in pages]
    lists: dict[str, Any] = {"query_tokens": tokens, "pages": pages, "valid": valid, "seen": seen}
    lists["bias"] = bias
    if rng.random() < 0.4:
        del lists["bias"]
    if rng.random() < 0.2:
        del lists["seen"]
    door = rng.choice(("build", "from_flat", "constructor"))
    flat: dict[str, Any] = {}
    if door != "build" and "seen" in lists:
        flat = {
            "query_tokens": sum(tokens, []),
            "frames": [len(own) for own in tokens],
            "entries": [len(own) for own in pages],
            "pages": sum(pages, []),
            "valid": sum(valid, []),
            "seen": sum(seen, []),
            "bias": torch.tensor(sum(bias, []), dtype=torch.float32) if "bias" in lists else None,
        }
    given = flat or lists
    broken = rng.random() < 0.6
    if broken:
        _break(rng, given)
    heads = rng.choice((1, 2, 3))
    kv_heads, dim = rng.choice([n for n in (1, heads)]), rng.choice((1, 8, 20))
    if door == "constructor" and flat:
        tensors = {name: _tensor(rng, value, broken) for name, value in flat.items()}
        for name in ("query_tokens", "frames", "entries"):
            tensors[name] = _offsets(tensors[name])
        renamed = {"query_tokens": "frame_ptr", "frames": "group_ptr", "entries": "page_ptr"}
        table = FrameTable(**{renamed.get(name, name): value for name, value in tensors.items()})
    elif flat:
        table = FrameTable.from_flat(**given)
    else:
        table = FrameTable.build(**given)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    if broken:
        pool, rows = pool + rng.choice((-1, 0, 0, 1)), rows + rng.choice((-1, 0, 0, 1))
    # A wrong table may ask for more than there is; its queries must fit in memory all the same.
    q = torch.randn(min(table.num_tokens, 1000), heads, dim, generator=generator)
    k, v = (torch.randn(max(0, pool), kv_heads, max(0, rows), dim, generator=generator) for _ in "kv")
    if not broken and (rng.random() < 0.5):
        q.requires_grad_()
    o = ops.frame_attention(q, k, v, table)
    offsets = (table.frame_ptr, table.group_ptr, table.page_ptr)
    wide = (q.double(), k.double(), v.double(), *offsets, table.pages, table.valid, table.seen, table.bias)
    # Beside a huge bias float32 rounds logits away.
    biases = torch.zeros(1) if table.bias is None else table.bias
    if not bool(((biases.abs() > 100) & (biases != -np.inf)).any()):
        _agree(o, reference_frame_attention(*wide, dim**-0.5)[0])
    if q.requires_grad:
        (got,) = torch.autograd.grad(o.sum(), q)
        assert bool(torch.isfinite(got).all()), "a gradient is not finite"
    return "broken, yet accepted" if broken else "agrees"


def write(rng: random.Random) -> str:
    """norm_rope_write_ and norm_rope_pages."""
    pages, rows, heads, dim = rng.randint(1, 4), rng.randint(1, 5), rng.choice((1, 2)), rng.choice((2, 8))
    tokens = rng.randint(0, pages * rows)
    slots = rng.sample(range(pages * rows), tokens)
    slots = [slot if rng.random() < 0.9 else -1 for slot in slots]
    broken = rng.random() < 0.5 and tokens > 0
    if broken:
        slots[rng.randrange(tokens)] = rng.choice((-2, pages * rows, -(2**63), 2**63 - 1, 2**32, 2**31))
    qkv, norm = torch.randn(tokens, 3 * heads * dim), rng.choice(("none", "layer", "rms"))
    k, v = (torch.randn(pages, heads, rows, dim) for _ in "kv")
    before = k.clone(), v.clone()
    positions = torch.tensor([rng.choice((0, 1, 7, 2**31)) for _ in range(tokens)], dtype=torch.int64)
    where = torch.tensor(slots, dtype=torch.int64)
    frequencies = torch.rand(dim // 2, dtype=torch.float64)
    both: dict[str, Any] = {"heads": heads, "norm": norm, "frequencies": frequencies}
    into_pool = rng.random() < 0.6
    try:
        if into_pool:
            q = ops.norm_rope_write_(qkv, k, v, where, positions, **both)
        else:
            q, k, v = ops.norm_rope_pages(qkv, where, positions, num_pages=pages, page_rows=rows, **both)
    except ArdiffError:
        assert torch.equal(k, before[0]) and torch.equal(v, before[1]), "written in spite of an error"
        raise
    want_q, want_k, want_v = reference_norm_rope(
        qkv.double(), positions, heads, norm=norm, frequencies=frequencies
    )
    for pool, old, new in ((k, before[0], want_k), (v, before[1], want_v)):
        want = old.double() if into_pool else torch.zeros(old.shape, dtype=torch.float64)
        for token, slot in enumerate(slots):
            if slot >= 0:
                want[slot // rows, :, slot % rows] = new[token]
        _agree(pool, want)
    _agree(q, want_q)
    return "broken, yet accepted" if broken else "agrees"


def pages(rng: random.Random) -> str:
    """copy_pages_ and rotate_pages_."""
    layers, count, heads, rows, dim = (rng.randint(1, most) for most in (2, 6, 2, 3, 4))
    dim *= 2
    k, v = (torch.randn(layers, count, heads, rows, dim) for _ in "kv")
    before = k.clone(), v.clone()
    ids = rng.sample(range(count), rng.randint(0, count))
    half = len(ids) // 2
    copying, broken = rng.random() < 0.5, rng.random() < 0.5
    src, dst = ids[:half], ids[half : 2 * half]
    listed = dst if copying else ids
    if broken and listed:
        listed[rng.randrange(len(listed))] = rng.choice((-1, count, 2**31, 2**32, 2**63 - 1, *listed, *src))
    rules = all(0 <= page < count for page in src + listed) and len(set(listed)) == len(listed)
    rules = rules and not (copying and set(src) & set(dst))
    as_ids = {"dtype": torch.int64}
    try:
        if copying:
            ops.copy_pages_(k, v, torch.tensor(src, **as_ids), torch.tensor(dst, **as_ids))
        else:
            deltas = torch.tensor([rng.choice((0, 1, -3, 2**20)) for _ in ids], **as_ids)
            frequencies = torch.rand(dim // 2, dtype=torch.float64)
            ops.rotate_pages_(k, torch.tensor(ids, **as_ids), deltas, frequencies)
    except ArdiffError:
        assert not rules, "refused although it follows the rules"
        assert torch.equal(k, before[0]) and torch.equal(v, before[1]), "written in spite of an error"
        raise
    assert rules, "accepted although it breaks the rules"
    want = before[0].double()
    if copying:
        want[:, dst] = want[:, src]
    else:
        angle = (deltas.double()[:, None] * frequencies)[:, None, None]
        even, odd = want[:, ids, ..., 0::2], want[:, ids, ..., 1::2]
        turned = [even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin()]
        want[:, ids] = torch.stack(turned, -1).flatten(-2)
    _agree(k, want)
    return "agrees"


KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = ((attention, 3), (write, 1), (pages, 1))


def attempt(seed: int, case: int) -> tuple[str, str]:
    """(how the case ended, a traceback where that must not happen)"""
    rng = random.Random(f"{seed}/{case}")
    torch.manual_seed(case)
    kind = rng.choices([kind for kind, _ in KINDS], [share for _, share in KINDS])[0]
    try:
        return f"{kind.__name__}: {kind(rng)}", ""
    except ArdiffError as error:
        return f"{kind.__name__}: {type(error).__name__}", ""
    except Exception as error:
        return f"{kind.__name__}: WRONG: {type(error).__name__}", traceback.format_exc()


def run(cases: int, seed: int, *, show: bool = False) -> Counter[str]:
    """How many cases ended in which way; those with WRONG in their name must not happen."""
    ends: Counter[str] = Counter()
    for case in range(cases):
        end, why = attempt(seed, case)
        ends[end] += 1
        if why and show:
            print(f"case {case}: {end}\n{why}", flush=True)
    return ends


def _break(rng: random.Random, given: dict[str, Any]) -> None:
    """One to three changes, at any depth."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(list(given))
        target: Any = given
        at: Any = name
        while isinstance(target[at], list) and target[at] and rng.random() < 0.8:
            target, at = target[at], rng.randrange(len(target[at]))
        value = target[at]
        how = rng.random()
        if how < 0.3:
            target[at] = rng.choice(ODD)
        elif how < 0.6:
            target[at] = rng.choice(INTEGERS)
        elif how < 0.8 and isinstance(value, list):
            more = [value + value[:1], value + [0], value + [rng.choice(ODD)]]
            target[at] = rng.choice((value[:-1], [value], *more))
        elif isinstance(value, int):
            target[at] = value + rng.choice((-1, 1))
        elif target is given and len(given) > 4 and rng.random() < 0.5:
            given[name] = None
        else:
            target[at] = rng.choice(ODD)


def _tensor(rng: random.Random, value: Any, broken: bool) -> Any:
    """Lists as int32 tensors, now and then as something else; what torch refuses stays as it is."""
    if isinstance(value, torch.Tensor) or value is None:
        return value
    other = broken and rng.random() < 0.1
    dtype = rng.choice((torch.int64, torch.float32, torch.int16)) if other else torch.int32
    try:
        return torch.tensor(value, dtype=dtype)
    except Exception:
        return value


def _offsets(sizes: Any) -> Any:
    if not isinstance(sizes, torch.Tensor) or sizes.dim() != 1:
        return sizes
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0).to(sizes.dtype)])


def _agree(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"shape {list(got.shape)}, want {list(want.shape)}"
    got, want = got.detach().double(), want.detach()
    error = float((got - want).norm()) / max(float(want.norm()), 1e-3)
    assert error <= LIMIT, f"relative error {error}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description="Tries random page tables, right ones and wrong ones.")
    parser.add_argument("--cases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this case alone, with its traceback")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    if options.case is not None:
        end, why = attempt(options.seed, options.case)
        print(end, why, sep="\n")
        return 1 if why else 0
    ends = run(options.cases, options.seed, show=True)
    for end, count in sorted(ends.items()):
        print(f"{count:7} {end}")
    return 1 if any("WRONG" in end for end in ends) else 0


if __name__ == "__main__":
    sys.exit(main())
