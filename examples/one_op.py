# SPDX-License-Identifier: Apache-2.0
"""One kernel on your own tensors: attention of a new frame over a paged history.  python examples/one_op.py

Twelve frames of a video have keys and values in pages of 16 rows, anywhere in the pool. The new frame sees
the first one (a sink) and the last four. There is no mask and no copy: the view is a list of pages.
"""

from __future__ import annotations

import torch

import ardiff_engine as ade

FRAMES, TOKENS, ROWS, HEADS, DIM = 12, 24, 16, 4, 64


def main() -> None:
    torch.manual_seed(0)
    keys = torch.randn(FRAMES, TOKENS, HEADS, DIM)
    values = torch.randn(FRAMES, TOKENS, HEADS, DIM)
    query = torch.randn(TOKENS, HEADS, DIM)

    # A frame of 24 tokens takes two pages: one full, one with 8 valid rows. Unused rows may hold anything.
    per_frame = -(-TOKENS // ROWS)
    order = torch.randperm(FRAMES * per_frame)
    k_pages = torch.full((len(order), HEADS, ROWS, DIM), float("nan"))
    v_pages = torch.full_like(k_pages, float("nan"))
    for frame in range(FRAMES):
        for part in range(per_frame):
            rows = slice(part * ROWS, min((part + 1) * ROWS, TOKENS))
            page, count = order[frame * per_frame + part], rows.stop - rows.start
            k_pages[page, :, :count] = keys[frame, rows].transpose(0, 1)
            v_pages[page, :, :count] = values[frame, rows].transpose(0, 1)

    seen = [0, 8, 9, 10, 11]
    table = ade.ops.FrameTable.build(
        query_tokens=[TOKENS],
        pages=[[int(order[frame * per_frame + part]) for frame in seen for part in range(per_frame)]],
        valid=[[ROWS, TOKENS - ROWS] * len(seen)],
    )
    out = ade.ops.frame_attention(query, k_pages, v_pages, table)

    dense = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        keys[seen].flatten(0, 1).transpose(0, 1),
        values[seen].flatten(0, 1).transpose(0, 1),
    ).transpose(0, 1)
    error = float((out - dense).norm() / dense.norm())
    print(f"{TOKENS} queries over {len(seen)} of {FRAMES} frames, difference to dense attention: {error:.1e}")
    print(f"ran on: {ade.ops.backends()['frame_attention']['cpu']}")
    if not error < 1e-5:
        raise SystemExit("paged and dense attention differ")


if __name__ == "__main__":
    main()
