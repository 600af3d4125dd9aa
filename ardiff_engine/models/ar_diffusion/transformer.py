# SPDX-License-Identifier: Apache-2.0
"""The AR-Diffusion transformer (CVPR 2025, arXiv 2503.07418): joint attention over context and video tokens,
one diffusion timestep per frame. Parameter names are the official ones, so official weights load without
renaming.

One network, two ways in: `forward_clip` for whole clips (training, and the plain algorithm that tests compare
with) and `forward` for cells over a page pool (the engine). Both run the same blocks; they differ only in
where keys and values live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ardiff_engine import ops
from ardiff_engine._native import native
from ardiff_engine.errors import TensorError, explain
from ardiff_engine.models.ar_diffusion.block import LAYER_NORM_EPS, Block, TimestepEmbedder
from ardiff_engine.models.ar_diffusion.clip_checks import check_clip, check_history
from ardiff_engine.models.ar_diffusion.clip_views import clip_table, history_table
from ardiff_engine.models.ar_diffusion.config import ARDiffusionConfig
from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.models.dit.paged_attention import QK_NORM_EPS, PagedAttention, QKWeights
from ardiff_engine.models.dit.positions import rope_frequencies, sincos_positions
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.ranges import annotate


class ARDiffusionTransformer(nn.Module, VideoModel):
    """Predicts clean latents (or noise, or v, as trained) from noisy frames, each at its own timestep."""

    as_modules = False
    """Set it before an engine is built to have blocks called as modules: with hooks, LoRA, other layers."""
    _native: NativeBlocks | None = None
    pos_embed: torch.Tensor
    frequencies: torch.Tensor

    def __init__(self, config: ARDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = RowLinear(config.channels, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.c_embedder = RowLinear(config.context_dim, config.width)
        self.context_embedding = nn.Parameter(
            torch.empty(config.context_rows, config.context_tokens, config.context_dim)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = nn.Sequential(
            nn.LayerNorm(config.width, elementwise_affine=False, eps=LAYER_NORM_EPS),
            RowLinear(config.width, config.channels),
        )
        if config.positions == "absolute":
            table = sincos_positions(config.num_frames * config.tokens_per_frame, config.width)
            self.register_buffer("pos_embed", table.float()[None])
        # Not in the state dict, and rebuilt by _apply below: float64 even in a bf16 model, or positions lose
        # digits.
        self.register_buffer("frequencies", rope_frequencies(config.head_dim), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("adaLN_modulation.1.weight") or name == "final_layer.1.weight":
                nn.init.zeros_(parameter)
        nn.init.normal_(self.context_embedding, std=0.1)

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> ARDiffusionTransformer:
        self._native = None
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float64:
            self.frequencies = rope_frequencies(self.config.head_dim).to(self.frequencies.device)
        return self

    @property
    def layers(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    @property
    def spec(self) -> ModelSpec:
        return self.config.spec

    @property
    def device(self) -> torch.device:
        return self.x_embedder.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.weight.dtype

    def freeze(self) -> None:
        """Pack the blocks as they are now, float32 on the CPU. ConfigError for hooked or replaced ones.

        What is changed later counts from the next freeze on; training mode, another device or dtype, and
        `load_state_dict` undo it.
        """
        self._native = None
        if not self.as_modules and self.dtype == torch.float32 and on_native_cpu(self.x_embedder.weight):
            specs = [block.spec() for block in self.layers]
            self._native = NativeBlocks(specs) if self.layers[0].attn.qkv.packs else None

    def train(self, mode: bool = True) -> ARDiffusionTransformer:
        if mode:
            self._native = None
        return super().train(mode)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._native = None
        return super().load_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_native"}

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        config, item = self.config, self.dtype.itemsize
        packed = self.device.type == "cpu" and self.dtype == torch.float32 and native() is not None
        copies = (m.packed_bytes for m in self.modules() if packed and isinstance(m, RowLinear))
        rows = 1 + timesteps * (2 if config.merge == "sharenorm_shift_first_t" else 1)
        # At its widest a block holds the residual, its normed copy and q, then qkv and the output of
        # attention or the hidden layer twice (before and after GELU); lse and angles besides.
        widest = 3 * config.width + max(4 * config.width, 2 * config.mlp_width)
        return Footprint(
            weights=sum(p.numel() * p.element_size() for p in self.parameters()) + sum(copies),
            tables=config.depth * rows * 6 * config.width * item,
            workspace=tokens * (widest + config.heads + 2 * config.head_dim) * item,
        )

    # --- conditions

    @torch.no_grad()
    def condition(self, given: torch.Tensor | int | None) -> torch.Tensor:
        """[context_tokens, context_dim] of a class id, given rows, or None (the model's own context)."""
        if given is None:
            return self.context()[0]
        if isinstance(given, int):
            if abs(given) >= 2**63:
                raise TensorError(f"class: got {given}, expected the number of a class, or None.")
            return self.context(torch.tensor([given]))[0]
        expected = self.spec.condition.shape
        if tuple(given.shape) != expected or not bool(torch.isfinite(given).all()):
            raise TensorError(
                explain(
                    "condition",
                    got=tuple(given.shape),
                    expected=f"finite {expected}",
                    fix="Give [context_tokens, context_dim], a class id or None.",
                )
            )
        return given.detach().to(self.device, self.dtype)

    @torch.no_grad()
    def null_condition(self) -> torch.Tensor:
        return self.null_context()[0]

    def context(self, class_ids: torch.Tensor | None = None, batch: int = 1) -> torch.Tensor:
        """The trained context [B, context_tokens, context_dim]: of the given classes, or the only one."""
        if self.config.num_classes is None:
            if class_ids is not None:
                raise TensorError(
                    explain(
                        "class_ids",
                        got="class ids",
                        expected="None",
                        fix="This model was built without classes (num_classes=None).",
                    )
                )
            return self.context_embedding.expand(batch, -1, -1)
        if class_ids is None:
            return self.null_context(batch)
        ids = torch.as_tensor(class_ids, dtype=torch.int64, device=self.context_embedding.device).reshape(-1)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.num_classes:
            raise TensorError(
                explain(
                    "class_ids",
                    got=ids.tolist(),
                    expected=f"0..{self.config.num_classes - 1}",
                    fix="None stands for no class.",
                )
            )
        return self.context_embedding[ids]

    def null_context(self, batch: int = 1) -> torch.Tensor:
        """The context that stands for "no condition" in guidance and in condition dropout."""
        if self.config.num_classes is None:
            return torch.zeros_like(self.context_embedding).expand(batch, -1, -1)
        row = self.config.num_classes if self.config.null_class is None else self.config.null_class
        return self.context_embedding[row : row + 1].expand(batch, -1, -1)

    # --- modulation

    def tables(self, timesteps: torch.Tensor) -> Tables:
        return Tables((self.modulation_table(timesteps),))

    def modulation_table(self, t: torch.Tensor) -> torch.Tensor:
        """Timesteps [M] -> rows [depth, R, 6, D] for all layers, computed once per schedule.

        Row 0 is neutral (shift 0, scale 0, gate 1): context tokens use it. Row 1 + i belongs to t[i]. With
        `sharenorm_shift_first_t`, row 1 + M + i is that of t[i] with its gates at 1.
        """
        embedded = self.t_embedder(t)
        rows = torch.stack([block.adaLN_modulation(embedded).unflatten(1, (6, -1)) for block in self.layers])
        neutral = torch.zeros_like(rows[:, :1])
        neutral[:, :, 2::3] = 1
        if self.config.merge != "sharenorm_shift_first_t":
            return torch.cat([neutral, rows], dim=1)
        # In this mode the official code modulates the MLP by attention's shift and scale; its numbers say so.
        rows = torch.cat([rows[:, :, 0:3], rows[:, :, 0:2], rows[:, :, 5:6]], dim=2)
        one = torch.ones_like(rows[:, :, :1])
        ungated = torch.cat([rows[:, :, 0:2], one, rows[:, :, 3:5], one], dim=2)
        return torch.cat([neutral, rows, ungated], dim=1)

    def frame_rows(self, levels: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        return 1 + (firsts if self.config.merge == "reproduce" else levels)

    def condition_row(self, first: int, timesteps: int) -> int:
        if self.config.merge == "reproduce":
            return 1 + first
        return 1 + timesteps + first if self.config.merge == "sharenorm_shift_first_t" else 0

    # --- forward

    def forward(
        self,
        x: torch.Tensor,
        cells: CellBatch,
        tables: Tables,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens x [X, C] over the page pool, after `cells.num_contexts` contexts [K, context_tokens,
        context_dim].

        Writes the K/V of every token to its slot, then attends through the views: -> [X, C]. No gradient.
        The output of cells that are not `cells.wanted` may be anything.
        """
        config, (modulation,) = self.config, tables.parts
        h = self.x_embedder(x)
        frame, token = cells.positions.unbind(1)
        rows = frame * config.tokens_per_frame + token
        if config.positions == "absolute":
            h = h + self.pos_embed[0, rows]
        positions = rows + config.context_tokens
        skip = cells.num_contexts * config.context_tokens
        if condition is not None:
            h = torch.cat([self.c_embedder(condition).reshape(skip, config.width), h])
            own = torch.arange(config.context_tokens, device=x.device).repeat(cells.num_contexts)
            positions = torch.cat([own, positions])
        frequencies = self.frequencies if config.positions == "rope" else None

        with annotate("ardiff.layers"):
            if self._native is not None and self._native.takes(h, cells, positions):
                self._native.run(h, modulation, cells, positions, frequencies)
            else:
                for layer, block in enumerate(self.blocks):
                    attend = PagedAttention(cells, layer, config.heads, positions, frequencies)
                    h = block(h, modulation[layer], cells.frame_ids, attend)
        return self.final_layer(h[skip:])

    def forward_clip(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        history: torch.Tensor | None = None,
        history_t: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Whole clips, differentiable: x [B, F, L, C], t [B, F], context [B, context_tokens, context_dim] ->
        like x.

        Teacher forcing: with history [B, F - 1, L, C] and history_t [B, F - 1], frame f of x sees history
            frames 0 .. f - 1 in place of x's, and itself. One pass then holds F autoregressive steps, each
            with its own t, at twice the tokens. Needs `temporal_causal` and a merge mode in which a frame's
            own t is enough.
        """
        config = self.config
        check_clip(config, x, t, context)
        clips, own_frames = t.shape
        past = 0
        if history is not None:
            history, history_t = check_history(config, x, history, history_t)
            past = history_t.shape[1]
            x, t = torch.cat([history, x], dim=1), torch.cat([history_t, t], dim=1)
        frames = past + own_frames
        length, width = config.tokens_per_frame, config.width
        frame_index = torch.cat([torch.arange(past), torch.arange(own_frames)]).to(x.device)
        rows = (frame_index[:, None] * length + torch.arange(length, device=x.device)).reshape(-1)
        video = self.x_embedder(x).reshape(clips, frames * length, width)
        if config.positions == "absolute":
            video = video + self.pos_embed[:, rows]
        h = torch.cat([self.c_embedder(context), video], dim=1).reshape(-1, width)
        modulation = self.modulation_table(t.reshape(-1))
        frame_ids = self._clip_rows(clips, frames, x.device)
        sequence = config.context_tokens + frames * length
        own = torch.arange(config.context_tokens, device=x.device)
        positions = torch.cat([own, config.context_tokens + rows]).repeat(clips)
        context_pages = -(-config.context_tokens // length)
        if past:
            table = history_table(clips, own_frames, length, config.context_tokens)
        else:
            table = clip_table(clips, frames, length, config.context_tokens, config.mask)
        table = table.to(x.device)

        # A clip's pages: context, padded to whole pages, then one per frame.
        num_pages = context_pages + frames
        inside = torch.cat([own, context_pages * length + torch.arange(frames * length, device=x.device)])
        first_rows = torch.arange(clips, device=x.device) * num_pages * length
        slots = (first_rows[:, None] + inside).reshape(-1)

        def attend(qkv: torch.Tensor, weights: QKWeights) -> torch.Tensor:
            q, k_pages, v_pages = ops.norm_rope_pages(
                qkv,
                slots,
                positions,
                num_pages=clips * num_pages,
                page_rows=length,
                heads=config.heads,
                norm="none" if weights[0] is None else "layer",
                q_weight=weights[0],
                q_bias=weights[1],
                k_weight=weights[2],
                k_bias=weights[3],
                eps=QK_NORM_EPS,
                frequencies=self.frequencies if config.positions == "rope" else None,
            )
            return ops.frame_attention(q, k_pages, v_pages, table).reshape(qkv.shape[0], width)

        # Unbound once: modulation[layer] would fill a gradient of the whole table per layer, and add them up.
        for block, layer_rows in zip(self.layers, modulation.unbind(0), strict=True):
            h = block(h, layer_rows, frame_ids, attend)
        video = h.reshape(clips, sequence, width)[:, config.context_tokens + past * length :]
        return self.final_layer(video).reshape(clips, own_frames, length, config.channels)

    def _clip_rows(self, clips: int, frames: int, device: torch.device) -> torch.Tensor:
        config, count = self.config, clips * frames
        first = torch.arange(clips, device=device) * frames
        if config.merge == "reproduce":
            rows = (1 + first)[:, None].expand(clips, frames)
            context = 1 + first
        else:
            rows = 1 + torch.arange(count, device=device).reshape(clips, frames)
            context = (
                1 + count + first if config.merge == "sharenorm_shift_first_t" else torch.zeros_like(first)
            )
        video = rows[:, :, None].expand(clips, frames, config.tokens_per_frame).reshape(clips, -1)
        return (
            torch.cat([context[:, None].expand(-1, config.context_tokens), video], dim=1)
            .reshape(-1)
            .to(torch.int32)
        )
