# SPDX-License-Identifier: Apache-2.0
"""Wan over pages, as the engine takes it.

A token is a patch of the latents, channels · rows · columns numbers, in the order of the patch embedding's
weight. The solver sees the same tokens: patches do not overlap, so it may move them as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine import ops
from ardiff_engine.errors import TensorError
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.block_ops import run_blocks
from ardiff_engine.models.dit.block_spec import Attention, BlockSpec, Branch, Heads, Mlp, by_rows
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.models.dit.row_linear import row_linear
from ardiff_engine.models.dit.transposed_weights import contiguous_again
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ConditionSpec, FrameInput, ModelSpec, Size
from ardiff_engine.models.wan.config import WanConfig
from ardiff_engine.models.wan.layers import Block, Head
from ardiff_engine.models.wan.positions import axis_frequencies
from ardiff_engine.ops.backend import on_native_cpu

NUM_FRAMES, SIZE = 21, (60, 104)
"""Latent frames of the 81 pictures that Wan was trained on, and their rows and columns (480 x 832 pixels)."""
PICTURES = "pictures"
"""Of image-to-video models: channels beside those of the latents, a mask and the given pictures' latents."""
ACTIONS = "actions"
"""Of models that are steered: what holds for a whole frame, such as which keys are held."""


class PagedWan(nn.Module, VideoModel):
    """What makes a transformer of these parts a `VideoModel`: its blocks with K/V in pages."""

    config: WanConfig
    patch_embedding: nn.Conv3d
    blocks: nn.ModuleList
    head: Head
    text_embedding: nn.Sequential
    action_embedding: nn.Linear
    _native: NativeBlocks | None = None
    _packed: list[BlockSpec] | None = None
    _frozen: tuple[nn.Linear, nn.Linear, nn.Linear | None, Tensor] | None = None

    @abstractmethod
    def time_rows(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [...] -> the time embedding [..., width] and the rows of the blocks [..., 6, width]."""

    @abstractmethod
    def picture_rows(self, picture: Tensor) -> Tensor:
        """CLIP's tokens [B, image_tokens, image_dim] -> [B, image_tokens, width]."""

    @property
    def spec(self) -> ModelSpec:
        config = self.config
        rows, columns = config.patch[1:]
        beside = config.channels - config.out_channels
        inputs = [FrameInput(PICTURES, beside, places=True)] if beside else []
        if config.actions is not None:
            inputs.append(FrameInput(ACTIONS, config.actions))
        time, *grid = axis_frequencies(config.head_dim, config.time_scale).tolist()
        return ModelSpec(
            num_frames=NUM_FRAMES,
            channels=config.out_channels * rows * columns,
            patch=(rows, columns),
            size=(rows * math.ceil(SIZE[0] / rows), columns * math.ceil(SIZE[1] / columns)),
            layers=config.depth,
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.head_dim,
            views_per_layer=True,
            views_per_head=True,
            frame_angles=tuple(time),
            grid_angles=tuple(map(tuple, grid)),
            condition=_condition_spec(config),
            frame_inputs=tuple(inputs),
        )

    def to_tokens(self, latents: Tensor) -> Tensor:
        """[..., channels, H, W] -> [..., tokens, channels of a token]"""
        rows, columns = self.config.patch[1:]
        height, width = latents.shape[-2:]
        patches = latents.reshape(-1, latents.shape[-3], height // rows, rows, width // columns, columns)
        tokens = height // rows * (width // columns)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(*latents.shape[:-3], tokens, -1)

    def from_tokens(self, tokens: Tensor, size: Size | None) -> Tensor:
        """[..., tokens, channels of a token] -> [..., channels, H, W]"""
        down, across = self.spec.grid(size)
        rows, columns = self.config.patch[1:]
        patches = tokens.reshape(-1, down, across, self.config.out_channels, rows, columns)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(
            *tokens.shape[:-2], -1, down * rows, across * columns
        )

    @torch.no_grad()
    def freeze(self) -> None:
        """Where the CPU computes in float32, the weights of the blocks are transposed in place: parameters
        keep their values and their shape, and get another stride until `state_dict` or `train`. With CLIP's
        rows (`image_dim`) packed copies are made instead."""
        self._frozen = self._ends()
        self._native = self._packed = None
        if self.dtype == torch.float32 and on_native_cpu(self.patch_embedding.weight):
            specs = self.block_specs()
            if self.config.image_dim is None:
                self._native = NativeBlocks(specs)
            else:
                self._packed = [by_rows(spec) for spec in specs]

    def tables(self, timesteps: Tensor) -> Tables:
        """Rows of the blocks [layers, R, 6, width], and of the head [R, 2, width]."""
        with torch.no_grad():
            # One by one: BLAS rounds by the number of rows, and a timestep has the same row in any table.
            rows = [self.time_rows(t[None]) for t in timesteps]
            embedding, time = (torch.cat(parts) for parts in zip(*rows, strict=True))
            blocks = torch.stack([block.modulation + time for block in self._blocks])
            head = self.head.modulation + embedding[:, None]
            return Tables((F.pad(blocks, (0, 0, 0, 0, 1, 0)), F.pad(head, (0, 0, 0, 0, 1, 0))))

    @torch.no_grad()
    def condition(self, given: Tensor | int | None) -> Tensor:
        """A prompt's embedding [at most text_tokens, text_dim], filled up with zeros; None: zeros. Models
        that take CLIP's tokens of a picture: what `with_picture` makes of both."""
        rows, dim = self.spec.condition.shape
        if given is None:
            return self.null_condition()
        if self.config.image_dim is not None and (not isinstance(given, Tensor) or len(given) != rows):
            raise TensorError("condition: this model sees a picture too; give with_picture(prompt, tokens).")
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

    def with_picture(self, prompt: Tensor, picture: Tensor) -> Tensor:
        """The condition of models that take CLIP's tokens of a picture.

        prompt: an embedding [at most text_tokens, text_dim]; picture: [image_tokens, image_dim]. -> rows of
        both, one below the other, as wide as the wider. TensorError: other shapes; a model without CLIP.
        """
        config = self.config
        shapes = (config.image_tokens, config.image_dim), config.text_dim
        if (tuple(picture.shape), *prompt.shape[1:]) != shapes or not 1 <= len(prompt) <= config.text_tokens:
            raise TensorError(
                f"with_picture: got a prompt {list(prompt.shape)} and a picture {list(picture.shape)}, "
                f"expected [at most {config.text_tokens}, {config.text_dim}] and {list(shapes[0])}."
            )
        condition = torch.zeros(self.spec.condition.shape, device=prompt.device, dtype=prompt.dtype)
        condition[: len(prompt), : prompt.shape[1]] = prompt
        condition[config.text_tokens :, : picture.shape[1]] = picture
        return condition

    @torch.no_grad()
    def write_condition(
        self,
        condition: Tensor,
        slots: Tensor,
        k_pages: Tensor,
        v_pages: Tensor,
        heads: slice = slice(None),
    ) -> None:
        """K and V of a prompt, and of a picture, in every layer, to the rows `slots` [their tokens] of pages
        [layers, pages, heads, page_rows, dim]; -1: not stored. heads: whose pages these are."""
        stored = slots >= 0
        page, row = slots[stored] // k_pages.shape[3], slots[stored] % k_pages.shape[3]
        for layer, (k, v) in enumerate(self._keys_values(condition, stored)):
            k_pages[layer][page, :, row], v_pages[layer][page, :, row] = k[:, heads], v[:, heads]

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        config, item = self.config, self.dtype.itemsize
        weights = sum(p.numel() for p in self.parameters()) * item
        copies = config.image_dim is not None and self.dtype == torch.float32
        copies = copies and on_native_cpu(self.patch_embedding.weight)
        widest = 5 * config.width + max(3 * config.width, config.mlp_width)
        return Footprint(
            weights=weights * (2 if copies else 1),
            tables=(timesteps + 1) * (config.depth * 6 + 2) * config.width * item,
            workspace=tokens * (widest + config.heads + 2 * config.head_dim) * item,
        )

    @torch.no_grad()
    def forward(self, x: Tensor, cells: CellBatch, tables: Tables, condition: Tensor | None = None) -> Tensor:
        """Tokens x [X, channels] over pages; see `VideoModel`."""
        (modulation, head), positions, rates = tables.parts, cells.positions, self.frequencies
        h = self.entered(x, cells.inputs)
        if self._native is not None and self._native.takes(h, cells, positions):
            self._native.run(h, modulation, cells, positions, rates)
        else:
            h = run_blocks(self._packed or self.block_specs(), h, modulation, cells, positions, rates)
        return self.predicted(h, head, cells.frame_ids)

    def entered(self, x: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Tokens [X, channels] with their frame inputs -> rows of the first block [X, width]."""
        embed, _, told, _ = self._frozen or self._ends()
        if PICTURES in inputs:
            x = torch.cat([x, inputs[PICTURES].to(x.dtype)], dim=1)
        h: Tensor = embed(x)
        return h if told is None else h + told(inputs[ACTIONS].to(h.dtype))

    def predicted(self, h: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Rows of the last block [X, width], rows of the head [R, 2, width], and which of them each token
        takes, int32 [X] -> [X, channels of a token]."""
        shift, scale = rows.unbind(1)
        predicted: Tensor = (self._frozen or self._ends())[1](
            ops.modulate(h, shift, scale, ids, eps=self.head.norm.eps)
        )
        return predicted

    @property
    def frequencies(self) -> Tensor:
        """float64 [axes, head_dim / 2] of the rotary positions."""
        return (self._frozen or self._ends())[3]

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Of parameters that are contiguous and share nothing, as savers want them. Running engines keep
        the weights as they were; the next `freeze` lays them out again."""
        contiguous_again(self)
        return super().state_dict(*arguments, **options)

    def train(self, mode: bool = True) -> PagedWan:
        if mode:
            contiguous_again(self)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PagedWan:
        # Weights that have moved away must not be kept in memory.
        self._native = self._packed = self._frozen = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_native", "_packed", "_frozen")
        }

    # --- private

    def _keys_values(self, condition: Tensor, stored: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each layer: K and V of those rows of a condition [its tokens] that are stored, [rows, heads,
        head_dim] each."""
        config = self.config
        of_text, of_picture = stored.split([config.text_tokens, len(stored) - config.text_tokens])
        text = self.text_embedding(condition[None, : config.text_tokens, : config.text_dim][:, of_text])
        picture = None
        if config.image_dim is not None:
            seen = condition[None, config.text_tokens :, : config.image_dim]
            picture = self.picture_rows(seen[:, of_picture])
        for block in self._blocks:
            k, v = block.cross_attn.keys_values(text)
            if picture is not None:
                more = block.cross_attn.picture_keys_values(picture)
                k, v = (torch.cat(pair, dim=1) for pair in zip((k, v), more, strict=True))
            yield k[0], v[0]

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def block_specs(self) -> list[BlockSpec]:
        """Of the blocks, in their order; over the parameters themselves."""
        return [_block_spec(block, self.config.eps) for block in self._blocks]

    def _ends(self) -> tuple[nn.Linear, nn.Linear, nn.Linear | None, Tensor]:
        """Patch embedding and head as linear layers between tokens as the solver has them and the blocks, the
        embedding of actions, and the frequencies of the positions."""
        conv, head = self.patch_embedding, self.head.head
        rows, columns = self.config.patch[1:]
        # The official head gives a patch's rows and columns first, then channels.
        order = torch.arange(head.out_features).reshape(rows, columns, -1).permute(2, 0, 1).flatten()
        order = order.to(head.weight.device)
        bias = conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)
        parts = ((conv.weight.flatten(1), bias), (head.weight[order], head.bias[order]))
        frequencies = axis_frequencies(self.config.head_dim, self.config.time_scale)
        made = []
        for weight, offset in parts:
            made.append(row_linear(weight, offset))
        told = None
        if self.config.actions is not None:
            of_actions = self.action_embedding.weight
            told = row_linear(of_actions, of_actions.new_zeros(len(of_actions)))
        return made[0], made[1], told, frequencies.to(self.device)


def _condition_spec(config: WanConfig) -> ConditionSpec:
    """A prompt, or a prompt and CLIP's tokens of a picture, which are attended to one by one."""
    if config.image_dim is None:
        return ConditionSpec("cross", config.text_tokens, (config.text_tokens, config.text_dim), counted=True)
    parts = (config.text_tokens, config.image_tokens)
    shape = sum(parts), max(config.text_dim, config.image_dim)
    return ConditionSpec("cross", sum(parts), shape, parts, counted=True)


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
