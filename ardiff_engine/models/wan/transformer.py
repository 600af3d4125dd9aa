# SPDX-License-Identifier: Apache-2.0
"""The transformer of Wan (Wan Team 2025, arXiv 2503.20314) and of its causal relatives, which have the same
parameters and other views: CausVid, Self-Forcing, LongLive, Causal-Forcing, Rolling Forcing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.errors import TensorError
from ardiff_engine.models.wan.config import WanConfig
from ardiff_engine.models.wan.frame_mask import block_causal, teacher_forced
from ardiff_engine.models.wan.layers import Attend, Block, Head, ImageEmbedding, dense_attention
from ardiff_engine.models.wan.positions import rotated, rotation, token_positions
from ardiff_engine.models.wan.video import PagedWan


class WanTransformer(PagedWan):
    """Predicts the velocity noise − x0 of latent frames that may all stand at different timesteps."""

    def __init__(self, config: WanConfig | None = None) -> None:
        super().__init__()
        self.config = config = WanConfig() if config is None else config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.channels, width, config.patch, config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.frequency_dim, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = Head(config)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, width)
        if config.actions is not None:
            self.action_embedding = nn.Linear(config.actions, width, bias=False)
        self.fps = 24
        """Pictures a second that models with `fps_embedding` are told; others do not ask."""
        if config.fps_embedding:
            self.fps_embedding = nn.Embedding(2, width)
            self.fps_projection = nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 6 * width)
            )

    def forward_clip(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        block: int | None = None,
        *,
        first: int | None = None,
        window: int | None = None,
        history: Tensor | None = None,
        history_t: Tensor | None = None,
        hold_history: bool = False,
        image: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Whole clips at once, differentiable.

        Args:
            x: [B, F, channels, H, W].
            t: [B, F], 0 to 1000, one timestep per frame; or [B, F·tokens], one per token (Wan 2.2).
            text: [B, at most text_tokens, text_dim].
            block: frames that see each other and all blocks before; None: all see all.
            first: size of the first block, if it has another one.
            window: frames up to the end of its own block that a frame sees.
            history: clean frames, like x (teacher forcing): a frame sees those of the blocks before in place
                of x's, and its own block of x. history_t: their timesteps [B, F], 0 if not given.
            hold_history: its keys and values have no gradient, like those in pages.
            image: CLIP's tokens [B, rows, image_dim], for models that take them.
            actions: [B, F, actions], for models that take them; those of x and of history.

        Returns [B, F, out_channels, H, W]. TensorError: shapes that do not fit.
        """
        self._check(x, t, text, image, actions)
        frames = x.shape[1]
        if history is not None:
            if history.shape != x.shape or block is None or window is not None:
                raise TensorError(
                    f"history {list(history.shape)}: expected {list(x.shape)}, as x, with block "
                    "and without window."
                )
            if t.shape != x.shape[:2]:
                raise TensorError(f"t: got {list(t.shape)} with history, expected one for each frame.")
            history_t = torch.zeros_like(t) if history_t is None else history_t
            x, t = torch.cat([history, x], dim=1), torch.cat([history_t, t], dim=1)
            visible: Tensor | None = teacher_forced(frames, block, first=first)
        else:
            visible = None if block is None else block_causal(frames, block, first=first, window=window)
        rows, columns = x.shape[3] // self.config.patch[1], x.shape[4] // self.config.patch[2]
        places = torch.arange(frames, device=x.device).repeat(x.shape[1] // frames)
        held = (x.shape[1] - frames) * rows * columns if hold_history else 0
        attend = self._clip_attention(token_positions(places, rows, columns), visible, rows * columns, held)
        # Each frame has one row of modulation, or one for each of its tokens.
        h, embedding, time = self.embedded(x), *self.time_rows(t.unflatten(1, (x.shape[1], -1)))
        if actions is not None:
            h = h + self.action_embedding(actions).repeat(1, x.shape[1] // frames, 1)[:, :, None]
        prompt, picture = self.prompt_rows(text), None if image is None else self.picture_rows(image)
        for layer in self.blocks:
            h = layer(h, time, attend, prompt, picture)
        out = self.head(h[:, -frames:], embedding[:, -frames:])
        return self.unpatched(out, rows, columns)

    def embedded(self, x: Tensor) -> Tensor:
        """[B, F, channels, H, W] -> tokens [B, F, rows·columns, width], row by row."""
        return self.patch_embedding(x.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)

    def time_rows(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [...] -> the time embedding [..., width] and the rows of the blocks [..., 6, width]."""
        half = self.config.frequency_dim // 2
        slow = torch.arange(half, dtype=torch.float64, device=t.device) / half
        angles = t.double()[..., None] * 10000.0**-slow
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.dtype)
        embedding = self.time_embedding(sinusoid)
        rows = self.time_projection(embedding)
        if self.config.fps_embedding:
            rows = rows + self.fps_projection(self.fps_embedding.weight[int(self.fps != 16)])
        return embedding, rows.unflatten(-1, (6, -1))

    def prompt_rows(self, text: Tensor) -> Tensor:
        """[B, rows, text_dim] -> [B, text_tokens, width]. Missing rows are zeros and attended to."""
        return self.text_embedding(F.pad(text, (0, 0, 0, self.config.text_tokens - text.shape[1])))

    def picture_rows(self, picture: Tensor) -> Tensor:
        """CLIP's tokens [B, rows, image_dim] -> [B, rows, width], of models with `image_dim`."""
        return self.img_emb(picture)

    def unpatched(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """[B, F, rows·columns, values of a patch] -> [B, F, out_channels, H, W]"""
        height, width = self.config.patch[1:]
        x = x.unflatten(3, (height, width, -1)).unflatten(2, (rows, columns))
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def _clip_attention(self, positions: Tensor, visible: Tensor | None, tokens: int, held: int) -> Attend:
        cosine, sine = rotation(positions, self.config.head_dim, self.config.time_scale)
        mask = None
        if visible is not None:
            mask = visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1).to(positions.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if held:
                k, v = (torch.cat([x[:, :held].detach(), x[:, held:]], dim=1) for x in (k, v))
            return dense_attention(rotated(q, cosine, sine), rotated(k, cosine, sine), v, mask)

        return attend

    def _check(
        self, x: Tensor, t: Tensor, text: Tensor, image: Tensor | None, actions: Tensor | None
    ) -> None:
        config = self.config
        rows, columns = config.patch[1:]
        if x.dim() != 5 or x.shape[2] != config.channels or x.shape[3] % rows or x.shape[4] % columns:
            raise TensorError(
                f"x: got {list(x.shape)}, expected [B, F, {config.channels}, H, W], H divisible by {rows} "
                f"and W by {columns}."
            )
        frames, tokens = x.shape[1], x.shape[3] * x.shape[4] // (rows * columns)
        if t.shape not in ((len(x), frames), (len(x), frames * tokens)):
            raise TensorError(
                f"t: got {list(t.shape)}, expected {[len(x), frames]}, one for each frame, or "
                f"{[len(x), frames * tokens]}, one for each token."
            )
        if (
            text.dim() != 3
            or text.shape[2] != config.text_dim
            or not 1 <= text.shape[1] <= config.text_tokens
        ):
            raise TensorError(
                f"text: got {list(text.shape)}, expected [B, <= {config.text_tokens}, {config.text_dim}]."
            )
        if (image is None) != (config.image_dim is None):
            raise TensorError(f"image: got {'none' if image is None else 'one'}, expected the opposite.")
        expected = None if config.actions is None else [len(x), frames, config.actions]
        if (None if actions is None else list(actions.shape)) != expected:
            got = None if actions is None else list(actions.shape)
            raise TensorError(f"actions: got {got}, expected {expected}.")
