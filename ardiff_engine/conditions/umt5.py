# SPDX-License-Identifier: Apache-2.0
"""umT5 (Chung et al. 2023), the text encoder of the Wan family, through `transformers` (extra `text`).

    embedding = encoder(tokens of the cleaned prompt, end token included), then rows of zeros up to 512.

Each prompt is encoded alone and without padding. So its embedding does not depend on what is encoded beside
it, and the padding, which the encoder would mask, costs nothing.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from ardiff_engine.conditions.pretrained import pretrained
from ardiff_engine.conditions.prompt import cleaned
from ardiff_engine.conditions.umt5_file import UMT5File
from ardiff_engine.device import usable_device
from ardiff_engine.errors import ConfigError, TensorError

PROMPTS_KEPT = 64
SHOWN_LOSS = 200


class UMT5:
    """Prompts to embeddings [n, tokens, width]. The last 64 prompts are remembered.

    tokens: rows of an embedding. A longer prompt is cut, with a warning that shows what was lost.
    """

    def __init__(self, encoder: Any, tokenizer: Any, tokens: int = 512) -> None:
        """encoder, tokenizer: `UMT5EncoderModel` and the tokenizer of its folder, or what acts like them."""
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 2:
            raise ConfigError(f"UMT5: tokens is {tokens!r}, expected a whole number >= 2; Wan uses 512.")
        self.tokens = tokens
        self.width = int(encoder.config.d_model)
        self._encoder: Any = encoder.eval()
        self._tokenizer = tokenizer
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str] | UMT5File,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tokens: int = 512,
    ) -> UMT5:
        """A folder in diffusers' layout (`text_encoder/`, `tokenizer/`), one that holds both, or Wan's
        official file after `ardiff convert`, with google/umt5-xxl/ beside it; or what was found there.

        Nothing is fetched, and only safetensors are read.

        Raises:
            UnsafeCheckpointError: the official file before it was converted.
            CheckpointError: no such folder, weights that do not fit the encoder, NaN, no tokenizer.
            ConfigError: `transformers` is missing, or an unknown device.
        """
        target = usable_device(device)
        found = folder if isinstance(folder, UMT5File) else UMT5File.open(folder)
        tokenizer = pretrained("AutoTokenizer", found.tokenizer, trust_remote_code=False)
        return cls(found.load(target, dtype), tokenizer, tokens)

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """[n, tokens, width] on the encoder's device; rows past the end of a prompt are zero.

        ConfigError: no list of texts, or a new prompt after `unload`.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise ConfigError(f"prompts: got {prompts!r}, expected a list of at least one text.")
        texts = [cleaned(prompt) for prompt in prompts]
        found = [self._embedding(text) for text in texts]
        out = found[0].new_zeros(len(found), self.tokens, self.width)
        for row, embedding in zip(out, found, strict=True):
            row[: len(embedding)] = embedding
        return out

    def null(self) -> torch.Tensor:
        """[tokens, width]: the embedding of the empty prompt, which guidance starts from."""
        return self.encode([""])[0]

    @staticmethod
    def mix(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
        """(1 - weight) first + weight second, for a slow change from one prompt to another."""
        if first.shape != second.shape:
            raise TensorError(
                f"mix: got {list(first.shape)} and {list(second.shape)}, expected equal shapes."
            )
        return torch.lerp(first, second, weight)

    def to(self, device: str | torch.device) -> UMT5:
        """Move the encoder; what was encoded before follows when it is asked for."""
        target = usable_device(device)
        self._loaded().to(target)
        self._known = OrderedDict((text, known.to(target)) for text, known in self._known.items())
        return self

    def unload(self) -> None:
        """Drop the encoder from memory. Prompts that are remembered can still be encoded."""
        self._encoder = None

    # --- private

    def _loaded(self) -> Any:
        if self._encoder is None:
            raise ConfigError("UMT5: the encoder was unloaded. Load it again to encode a new prompt.")
        return self._encoder

    @torch.no_grad()
    def _embedding(self, text: str) -> torch.Tensor:
        """[tokens of the text, width]"""
        known = self._known.get(text)
        if known is None:
            encoder = self._loaded()
            ids = torch.tensor([self._ids(text)], device=encoder.device)
            known = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            self._known[text] = known
            if len(self._known) > PROMPTS_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return known

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=True, truncation=False).input_ids
        if len(ids) <= self.tokens:
            return ids
        # The end token stays, as with the tokenizer's own truncation.
        kept, lost = ids[: self.tokens - 1], ids[self.tokens - 1 : -1]
        shown = self._tokenizer.decode(lost)
        warnings.warn(
            f"The prompt has {len(ids)} tokens, and the model reads {self.tokens}. Lost: …"
            + shown[:SHOWN_LOSS]
            + ("…" if len(shown) > SHOWN_LOSS else ""),
            stacklevel=4,
        )
        return [*kept, ids[-1]]
