# SPDX-License-Identifier: Apache-2.0
"""The plain algorithm of windows seen from their start: keys are kept without their rotation, and every call
rotates all that it sees, by places counted in the view. In float64, block after block, no pages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from dense_oracle import DenseTransformer, visibility

from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.models.ar_diffusion import ARDiffusionTransformer
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.models.wan.layers import dense_attention
from ardiff_engine.models.wan.positions import rotated, rotation, token_positions

Call = Callable[[torch.Tensor, float, Sequence[int], Sequence[int], Sequence[int]], torch.Tensor]
"""x of a block, its timestep, its frames, those that it sees, and where -> the network's output."""


class RawARDiffusion(DenseTransformer):
    def __init__(self, model: ARDiffusionTransformer, context: torch.Tensor) -> None:
        super().__init__(model)
        self.context = context
        self.held: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def call(
        self, x: torch.Tensor, t: float, block: Sequence[int], seen: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        self.block, self.seen, self.places = block, seen, places
        mask = visibility(self.c, len(block), lambda q, k: True)
        first = places[list(seen).index(block[0])]
        return self(x, torch.full((len(block),), t).double(), self.context, mask, first)

    def attention(
        self, n: int, u: torch.Tensor, position: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        c, tokens, context, length = self.c, u.shape[0], self.c.context_tokens, self.c.tokens_per_frame
        qkv = self.linear(f"blocks.{n}.attn.qkv", u).reshape(tokens, 3, c.heads, c.head_dim)
        q, k, v = qkv.permute(1, 2, 0, 3)
        q, k = self.head_norm(n, "q_norm", q), self.head_norm(n, "k_norm", k)
        for index, frame in enumerate(self.block):
            own = slice(context + index * length, context + (index + 1) * length)
            self.held[n, frame] = k[:, own], v[:, own]
        keys, values = (torch.cat([self.held[n, f][i] for f in self.seen], 1) for i in (0, 1))
        where = torch.cat([context + place * length + torch.arange(length) for place in self.places])
        mask = torch.ones(tokens, context + len(where), dtype=torch.bool)
        mask[:context, context:] = False
        out = torch.nn.functional.scaled_dot_product_attention(
            self.rotate(q, position),
            self.rotate(torch.cat([k[:, :context], keys], 1), torch.cat([position[:context], where])),
            torch.cat([v[:, :context], values], 1),
            attn_mask=mask,
        )
        return self.linear(f"blocks.{n}.attn.proj", out.transpose(0, 1).reshape(tokens, c.width))


class RawWan:
    def __init__(self, model: WanTransformer, text: torch.Tensor) -> None:
        self.model = copy.deepcopy(model).double()
        self.text = self.model.prompt_rows(text.double()[None])
        self.held: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def call(
        self, x: torch.Tensor, t: float, block: Sequence[int], seen: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        model, dim = self.model, self.model.config.head_dim
        rows, columns = x.shape[2] // model.config.patch[1], x.shape[3] // model.config.patch[2]
        where = rotation(token_positions(torch.tensor(places), rows, columns), dim)
        first = list(seen).index(block[0]) * rows * columns
        own = [part[first : first + len(block) * rows * columns] for part in where]
        h = model.embedded(x.double()[None])
        embedding, time = model.time_rows(torch.full((1, len(block), 1), t).double())
        for n, layer in enumerate(model.blocks):

            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                parts = zip(block, k.chunk(len(block), 1), v.chunk(len(block), 1), strict=True)
                self.held.update({(n, frame): (key, value) for frame, key, value in parts})  # noqa: B023
                keys, values = (torch.cat([self.held[n, f][i] for f in seen], 1) for i in (0, 1))  # noqa: B023
                return dense_attention(rotated(q, *own), rotated(keys, *where), values)

            h = layer(h, time, attend, self.text, None)
        return model.unpatched(model.head(h, embedding), rows, columns)[0]


def sampled(
    call: Call,
    noise: torch.Tensor,
    solver: Solver,
    block: int,
    size: int,
    sink: int,
    where: Callable[[list[int]], list[int]],
    given: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """x float64 [F, ...] after every step of every block; a finished block is called once more, clean.

    size, sink: as of memory.Window. where: places of the frames that a block sees."""
    x = noise.double() if given is None else torch.cat([given, noise]).double()
    done = 0 if given is None else len(given)
    clean = solver.timesteps[-1]
    for start in range(0, len(x), block):
        own = list(range(start, start + block))
        seen = [f for f in range(start + block) if f < sink or f >= start + block - size]
        places = where(seen)
        for level in range(solver.num_steps if start >= done else 0):
            out = call(x[start : start + block], float(solver.timesteps[level]), own, seen, places)
            p, q, a, b = solver.coefficients[level, :4]
            x = x.clone()
            now = x[start : start + block]
            x[start : start + block] = a * now + b * (p * now + q * out)
            yield x
        call(x[start : start + block], float(clean), own, seen, places)
