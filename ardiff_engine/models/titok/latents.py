# SPDX-License-Identifier: Apache-2.0
"""The two layouts of a latent video and the way between them (AR-Diffusion, `_preprocess_batch`).

The autoencoder speaks [B, T, c, 1, K] (channels first, un-normalised). Diffusion speaks tokens [B, T, K, c],
each an L2-normalised c-vector. The published scale factor of 0.5 is left out: the normalisation that follows
undoes it. A transformer may take neighbouring tokens as one: DiT's patches, along the only axis there is.
"""

from __future__ import annotations

import torch

from ardiff_engine.errors import ConfigError, TensorError, explain


def to_tokens(z: torch.Tensor) -> torch.Tensor:
    """[B, T, c, 1, K] -> unit-norm tokens [B, T, K, c]: x = z / max(|z|_2, 1e-12) over c."""
    if z.ndim != 5 or z.shape[3] != 1:
        raise TensorError(
            explain(
                "latents",
                got=tuple(z.shape),
                expected="[batch, frames, channels, 1, tokens]",
                fix="Use the output of TiTok.encode.",
            )
        )
    return torch.nn.functional.normalize(z.squeeze(3).transpose(2, 3), dim=-1, eps=1e-12)


def from_tokens(x: torch.Tensor) -> torch.Tensor:
    """[B, T, K, c] -> [B, T, c, 1, K], the input of TiTok.decode (which normalises again)."""
    if x.ndim != 4:
        raise TensorError(
            explain(
                "tokens",
                got=tuple(x.shape),
                expected="[batch, frames, tokens, channels]",
                fix="Add the missing dimension.",
            )
        )
    return x.transpose(2, 3).unsqueeze(3).contiguous()


def regroup(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """The same numbers as `tokens` tokens per frame: [..., K, c] -> [..., tokens, K c / tokens]."""
    return x.flatten(-2).unflatten(-1, (tokens, -1))


def check_cells(what: str, got: tuple[int, int], latents: tuple[int, int]) -> None:
    """ConfigError unless `got` tokens x channels hold an autoencoder's `latents`, or groups of its tokens."""
    (tokens, channels), (latent_tokens, size) = got, latents
    if tokens * channels != latent_tokens * size or latent_tokens % tokens:
        raise ConfigError(
            explain(
                what,
                got=f"frames of {tokens} tokens x {channels} channels",
                expected=f"{latent_tokens} x {size}, what the autoencoder makes, or groups of these tokens",
                fix="Change tokens_per_frame and channels, or use the autoencoder of this transformer.",
            )
        )
