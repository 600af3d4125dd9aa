# SPDX-License-Identifier: Apache-2.0
"""A small text encoder that is trained with its transformer: captions as bytes, numbered as ByT5 does (Xue et
al. 2022): 0 for padding, 1 for the end, a byte + 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.registry import Kind, register
from ardiff_engine.settings import MAX_LAYERS, MAX_SIZE

PAD, END, OFFSET = 0, 1, 3
BLANK = OFFSET + ord(" ")
REACH = 5
"""Bytes that a convolution sees."""


@dataclass(frozen=True, slots=True)
class CaptionEncoderConfig:
    """tokens: bytes of the longest caption, and one for its end. width: of an embedding. layers: of
    convolutions, before one of attention. words: of the longest caption; an embedding has one row for each
    word, the mean of its bytes, which a transformer learns to read in fewer steps. 0: a row for each byte.

    ConfigError: sizes that are not whole numbers in range.
    """

    tokens: int = 64
    width: int = 64
    layers: int = 2
    words: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), MAX_LAYERS if field.name == "layers" else MAX_SIZE
            least = 0 if field.name == "words" else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(
                    f"CaptionEncoderConfig.{field.name}: got {value!r}, expected a whole number in "
                    f"{least}..{most}."
                )
        if self.words > self.tokens:
            raise ConfigError(
                f"CaptionEncoderConfig.words: got {self.words}, expected at most one for each of the "
                f"{self.tokens} bytes (tokens)."
            )

    @property
    def rows(self) -> int:
        """Of an embedding."""
        return self.words or self.tokens

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class CaptionEncoder(nn.Module):
    """x = byte + place; x += conv(GELU(conv(norm(x)))) per layer; with `words` the mean over each word, and
    its number; x += attention(norm(x)); norm(x).

    The convolutions see words, the attention what belongs together. Rows of padding are zero.
    """

    def __init__(self, config: CaptionEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = CaptionEncoderConfig() if config is None else config
        width = config.width
        self.bytes = nn.Embedding(OFFSET + 256, width)
        self.places = nn.Embedding(config.tokens, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers + 2))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, REACH, padding=REACH // 2),
                nn.GELU(),
                nn.Conv1d(width, width, REACH, padding=REACH // 2),
            )
            for _ in range(config.layers)
        )
        if config.words:
            self.numbers = nn.Embedding(config.words, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def ids(self, captions: Sequence[str]) -> Tensor:
        """int64 [B, tokens]. ConfigError: no list of texts, or one that is too long."""
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ConfigError(f"captions: got {captions!r:.80}, expected a list of texts.")
        rows = torch.full((len(captions), self.config.tokens), PAD)
        for row, caption in zip(rows, captions, strict=True):
            data = caption.encode("utf-8", "replace")
            if len(data) >= self.config.tokens:
                raise ConfigError(
                    f"caption: got {len(data)} bytes ({caption!r:.60}), expected fewer than "
                    f"{self.config.tokens}. Shorten it."
                )
            if self.config.words and data.count(b" ") >= self.config.words:
                raise ConfigError(
                    f"caption: got {data.count(b' ') + 1} words ({caption!r:.60}), expected at most "
                    f"{self.config.words}. Shorten it."
                )
            row[: len(data) + 1] = torch.tensor([*(byte + OFFSET for byte in data), END])
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [B, tokens] -> [B, tokens or words, width]"""
        given = ids != PAD
        x = self.bytes(ids) + self.places.weight
        *before, last, end = self.norms
        for norm, layer in zip(before, self.layers, strict=True):
            # Padding must not show: a caption is read alike whatever the length of the rows.
            x = x + layer((norm(x) * given[..., None]).transpose(1, 2)).transpose(1, 2)
        if self.config.words:
            x, given = self._words(x, ids)
        q, k, v = self.qkv(last(x))[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=given[:, None, None, :])[:, 0]
        embedded: Tensor = end(x + self.out(seen)) * given[..., None]
        return embedded

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """[B, tokens or words, width] on the encoder's device; see `ids`. An empty caption says nothing:
        zeros, which guidance starts from."""
        told = torch.tensor([bool(caption) for caption in captions])[:, None, None]
        embedded = self(self.ids(captions).to(self.bytes.weight.device))
        return embedded * told.to(embedded.device)

    def _words(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[B, tokens, width] -> the words' [B, words, width], and where there is one [B, words]."""
        number = (ids == BLANK).cumsum(1)
        words = torch.arange(self.config.words, device=ids.device)[:, None]
        # The end belongs to the last word, so that there is always one.
        member = ((ids != PAD) & (ids != BLANK))[:, None] & (number[:, None] == words)
        letters = member.sum(2, keepdim=True)
        mean = member.to(x.dtype) @ x / letters.clamp(min=1)
        return mean + self.numbers.weight, letters[..., 0] > 0


register(Kind("caption_encoder", CaptionEncoderConfig, CaptionEncoder))
