# SPDX-License-Identifier: Apache-2.0
"""Wan over pages, as the engine takes it: a `VideoModel` for latents of one size.

A token is a patch of the latents, channels · rows · columns numbers, in the order of the patch embedding's
weight. The solver sees the same tokens: patches do not overlap, so it may move them as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.block_ops import run_blocks
from ardiff_engine.models.dit.block_spec import Attention, BlockSpec, Branch, Heads, Mlp
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ConditionSpec, ModelSpec
from ardiff_engine.models.wan.layers import Block
from ardiff_engine.models.wan.positions import axis_of_pairs, frequencies, token_positions
from ardiff_engine.models.wan.transformer import WanTransformer
from ardiff_engine.ops.backend import on_native_cpu

NUM_FRAMES = 21
"""Latent frames of the 81 pictures that Wan was trained on."""


class WanVideo(VideoModel):
    """The transformer with K/V in pages, for latents of `size` (rows, columns)."""

    def __init__(self, model: WanTransformer, size: tuple[int, int]) -> None:
        """ConfigError: a size that is no multiple of the patch; models that take pictures as conditions."""
        config, (rows, columns) = model.config, model.config.patch[1:]
        if size[0] < 1 or size[1] < 1 or size[0] % rows or size[1] % columns:
            raise ConfigError(
                f"size: got {size}, expected rows and columns in multiples of {rows} x {columns}."
            )
        if config.image_dim is not None or config.channels != config.out_channels:
            raise ConfigError("image-to-video models take pictures beside the latents: use forward_clip.")
        self.model, self.size = model, size
        self._grid = size[0] // rows, size[1] // columns
        self._patch = (config.channels, rows, columns)
        # One frequency per pair, on the axis that the pair turns with.
        own = F.one_hot(axis_of_pairs(config.head_dim), 3).T.double()
        self._frequencies = own * frequencies(config.head_dim)
        self._native: NativeBlocks | None = None
        self._ends: tuple[nn.Linear, nn.Linear] | None = None

    @property
    def spec(self) -> ModelSpec:
        config = self.model.config
        channels, rows, columns = self._patch
        return ModelSpec(
            num_frames=NUM_FRAMES,
            tokens_per_frame=self._grid[0] * self._grid[1],
            channels=channels * rows * columns,
            layers=config.depth,
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.head_dim,
            condition=ConditionSpec("cross", config.text_tokens, (config.text_tokens, config.text_dim)),
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to_tokens(self, latents: Tensor) -> Tensor:
        """[..., channels, H, W] -> [..., tokens, channels of a token]"""
        (channels, rows, columns), (down, across) = self._patch, self._grid
        patches = latents.reshape(-1, channels, down, rows, across, columns).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(*latents.shape[:-3], down * across, -1)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """[..., tokens, channels of a token] -> [..., channels, H, W]"""
        patches = tokens.reshape(-1, *self._grid, *self._patch).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(*tokens.shape[:-2], self._patch[0], *self.size)

    @torch.no_grad()
    def freeze(self) -> None:
        """Pack the weights as they are now, where the CPU computes in float32."""
        self._ends = self._embedding_and_head()
        self._native = None
        if self.dtype == torch.float32 and on_native_cpu(self.model.patch_embedding.weight):
            self._native = NativeBlocks(self._specs())

    def tables(self, timesteps: Tensor) -> Tables:
        """Rows of the blocks [layers, R, 6, width], and of the head [R, 2, width]."""
        with torch.no_grad():
            # One by one: BLAS rounds by the number of rows, and a timestep has the same row in any table.
            rows = [self.model.time_rows(t[None]) for t in timesteps]
            embedding, time = (torch.cat(parts) for parts in zip(*rows, strict=True))
            blocks = torch.stack([block.modulation + time for block in self._blocks])
            head = self.model.head.modulation + embedding[:, None]
            return Tables((F.pad(blocks, (0, 0, 0, 0, 1, 0)), F.pad(head, (0, 0, 0, 0, 1, 0))))

    @torch.no_grad()
    def condition(self, given: Tensor | int | None) -> Tensor:
        """A prompt's embedding [at most text_tokens, text_dim], filled up with zeros; None: zeros."""
        rows, dim = self.spec.condition.shape
        if given is None:
            return self.null_condition()
        if (
            not isinstance(given, Tensor)
            or given.ndim != 2
            or given.shape[1] != dim
            or not 1 <= len(given) <= rows
            or not bool(torch.isfinite(given).all())
        ):
            got = list(given.shape) if isinstance(given, Tensor) else given
            raise TensorError(
                f"condition: got {got}, expected finite [at most {rows}, {dim}] of a text encoder."
            )
        return F.pad(given.detach().to(self.device, self.dtype), (0, 0, 0, rows - len(given)))

    def null_condition(self) -> Tensor:
        return torch.zeros(self.spec.condition.shape, device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def write_condition(self, condition: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        """K and V of a prompt in every layer, to the rows `slots` [text_tokens] of pages
        [layers, pages, heads, page_rows, dim]."""
        page, row = slots // k_pages.shape[3], slots % k_pages.shape[3]
        text = self.model.prompt_rows(condition[None])
        for layer, block in enumerate(self._blocks):
            k, v = block.cross_attn.keys_values(text)
            k_pages[layer][page, :, row], v_pages[layer][page, :, row] = k[0], v[0]

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        config, item = self.model.config, self.dtype.itemsize
        weights = sum(p.numel() for p in self.model.parameters()) * item
        packs = self.dtype == torch.float32 and on_native_cpu(self.model.patch_embedding.weight)
        widest = 5 * config.width + max(3 * config.width, config.mlp_width)
        return Footprint(
            weights=weights * (2 if packs else 1),
            tables=(timesteps + 1) * (config.depth * 6 + 2) * config.width * item,
            workspace=tokens * (widest + config.heads + 2 * config.head_dim) * item,
        )

    @torch.no_grad()
    def __call__(
        self, x: Tensor, cells: CellBatch, tables: Tables, condition: Tensor | None = None
    ) -> Tensor:
        embed, project = self._ends or self._embedding_and_head()
        modulation, head = tables.parts
        positions = token_positions(cells.frame_positions, *self._grid)
        rates = self._frequencies.to(positions.device)
        h = embed(x.flatten(0, 1))
        if self._native is not None and self._native.takes(h, cells, positions):
            self._native.run(h, modulation, cells, positions, rates)
        else:
            h = run_blocks(self._specs(), h, modulation, cells, positions, rates)
        shift, scale = head[cells.frame_ids].unbind(1)
        norm = self.model.head.norm
        h = F.layer_norm(h, norm.normalized_shape, eps=norm.eps) * (1 + scale) + shift
        return project(h).reshape(x.shape)

    # --- private

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.model.blocks if isinstance(block, Block)]

    def _specs(self) -> list[BlockSpec]:
        return [_block_spec(block, self.model.config.eps) for block in self._blocks]

    def _embedding_and_head(self) -> tuple[nn.Linear, nn.Linear]:
        """Patch embedding and head as linear layers between tokens as the solver has them and the blocks."""
        conv, head = self.model.patch_embedding, self.model.head.head
        channels, rows, columns = self._patch
        # The official head gives a patch's rows and columns first, then channels.
        order = torch.arange(head.out_features).reshape(rows, columns, channels).permute(2, 0, 1).flatten()
        order = order.to(head.weight.device)
        bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
        parts = ((conv.weight.flatten(1), bias), (head.weight[order], head.bias[order]))
        made = []
        for weight, offset in parts:
            layer = RowLinear(weight.shape[1], weight.shape[0], device="meta")
            layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(offset.detach())
            made.append(layer.eval().requires_grad_(False))
        return made[0], made[1]


def _block_spec(block: Block, eps: float) -> BlockSpec:
    own, cross = block.self_attn, block.cross_attn
    width = own.q.in_features
    heads = Heads(
        own.heads,
        own.heads,
        width // own.heads,
        norm="rms_full",
        eps=own.norm_q.eps,
        q_weight=own.norm_q.weight,
        k_weight=own.norm_k.weight,
    )
    of_text = Heads(
        cross.heads,
        cross.heads,
        width // cross.heads,
        norm="rms_full",
        eps=cross.norm_q.eps,
        q_weight=cross.norm_q.weight,
    )
    seen = Branch(eps=eps, weight=block.norm3.weight, bias=block.norm3.bias)
    up, down = block.ffn[0], block.ffn[2]
    assert isinstance(up, nn.Linear) and isinstance(down, nn.Linear)
    return BlockSpec(
        Attention(Branch(eps=eps, shift=0, scale=1, gate=2), heads, (own.q, own.k, own.v), own.o),
        Mlp(Branch(eps=eps, shift=3, scale=4, gate=5), up, down),
        Attention(seen, of_text, (cross.q,), cross.o),
    )
