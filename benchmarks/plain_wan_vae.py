# SPDX-License-Identifier: Apache-2.0
"""The decoder of Wan 2.1's autoencoder as the official code computes it, in plain PyTorch: the opponent of
bench_wan_vae.py. One latent at a time, the last two input frames of every causal convolution in a list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainDecoder:
    """Decodes one video with the weights of a `WanVAE` by official name."""

    def __init__(self, weights: dict[str, Tensor], mean: Tensor, std: Tensor) -> None:
        self._weights, self._mean, self._std = weights, mean, std
        self._cache: list[Tensor | str | None] = [None] * 64
        self._at = 0

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """[n, C, h, w] -> [m, 3, 8 h, 8 w]."""
        z = latents.transpose(0, 1)[None] * self._std + self._mean
        z = F.conv3d(z, self._weights["conv2.weight"], self._weights["conv2.bias"])
        out: Tensor | None = None
        for latent in z.split(1, dim=2):
            self._at = 0
            frames = self._decode(latent)
            out = frames if out is None else torch.cat([out, frames], dim=2)
        assert out is not None
        return out[0].transpose(0, 1)

    def _decode(self, x: Tensor) -> Tensor:
        x = self._cached_conv(x, "decoder.conv1")
        x = self._residual(x, "decoder.middle.0")
        x = self._attention(x, "decoder.middle.1")
        x = self._residual(x, "decoder.middle.2")
        layer = 0
        while True:
            name = f"decoder.upsamples.{layer}"
            if f"{name}.resample.1.weight" in self._weights:
                x = self._upsample(x, name)
            elif f"{name}.residual.2.weight" in self._weights:
                x = self._residual(x, name)
            else:
                break
            layer += 1
        x = F.silu(self._norm(x, "decoder.head.0"))
        return self._cached_conv(x, "decoder.head.2")

    def _cached_conv(self, x: Tensor, name: str) -> Tensor:
        kept = x[:, :, -2:].clone()
        past = self._cache[self._at]
        if kept.shape[2] < 2 and isinstance(past, Tensor):
            kept = torch.cat([past[:, :, -1:], kept], dim=2)
        x = self._causal_conv(x, name, past if isinstance(past, Tensor) else None)
        self._cache[self._at] = kept
        self._at += 1
        return x

    def _causal_conv(self, x: Tensor, name: str, past: Tensor | None) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        front = weight.shape[2] - 1
        if past is not None and front:
            x = torch.cat([past, x], dim=2)
            front -= past.shape[2]
        high, wide = weight.shape[3] // 2, weight.shape[4] // 2
        x = F.pad(x, (wide, wide, high, high, front, 0))
        return F.conv3d(x, weight, self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self._weights[f"{name}.gamma"]

    def _residual(self, x: Tensor, name: str) -> Tensor:
        h = x
        if f"{name}.shortcut.weight" in self._weights:
            h = self._causal_conv(x, f"{name}.shortcut", None)
        x = F.silu(self._norm(x, f"{name}.residual.0"))
        x = self._cached_conv(x, f"{name}.residual.2")
        x = F.silu(self._norm(x, f"{name}.residual.3"))
        x = self._cached_conv(x, f"{name}.residual.6")
        return x + h

    def _attention(self, x: Tensor, name: str) -> Tensor:
        batch, channels, frames, height, width = x.shape
        y = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
        y = self._norm(y, f"{name}.norm")
        y = F.conv2d(y, self._weights[f"{name}.to_qkv.weight"], self._weights[f"{name}.to_qkv.bias"])
        y = y.reshape(batch * frames, 1, 3 * channels, -1).permute(0, 1, 3, 2).contiguous()
        q, k, v = y.chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.squeeze(1).permute(0, 2, 1).reshape(batch * frames, channels, height, width)
        y = F.conv2d(y, self._weights[f"{name}.proj.weight"], self._weights[f"{name}.proj.bias"])
        return y.reshape(batch, frames, channels, height, width).permute(0, 2, 1, 3, 4) + x

    def _upsample(self, x: Tensor, name: str) -> Tensor:
        batch, channels, frames, height, width = x.shape
        if f"{name}.time_conv.weight" in self._weights:
            past = self._cache[self._at]
            if past is None:
                self._cache[self._at] = "first"
            else:
                kept = x[:, :, -2:].clone()
                if kept.shape[2] < 2:
                    before = past[:, :, -1:] if isinstance(past, Tensor) else torch.zeros_like(kept)
                    kept = torch.cat([before, kept], dim=2)
                x = self._causal_conv(x, f"{name}.time_conv", past if isinstance(past, Tensor) else None)
                self._cache[self._at] = kept
                x = x.reshape(batch, 2, channels, frames, height, width)
                x = torch.stack((x[:, 0], x[:, 1]), dim=3)
                x = x.reshape(batch, channels, 2 * frames, height, width)
            self._at += 1
        frames = x.shape[2]
        x = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
        x = F.interpolate(x.float(), scale_factor=(2.0, 2.0), mode="nearest-exact").type_as(x)
        weight, bias = self._weights[f"{name}.resample.1.weight"], self._weights[f"{name}.resample.1.bias"]
        x = F.conv2d(x, weight, bias, padding=1)
        return x.reshape(batch, frames, *x.shape[1:]).permute(0, 2, 1, 3, 4)
