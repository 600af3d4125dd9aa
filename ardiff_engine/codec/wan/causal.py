# SPDX-License-Identifier: Apache-2.0
"""Convolutions that look back in time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.codec.past import Past

_ONEDNN = torch.backends.mkldnn.is_available()


class CausalConv3d(nn.Conv3d):
    """Height and width are padded by `padding`; in time only frames before are seen."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        looks_back: int | None = None,
    ) -> None:
        """looks_back: frames kept from the piece before, kernel[0] - 1 if not given."""
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(channels_in, channels_out, kernel, stride, padding)
        self.looks_back = kernel[0] - 1 if looks_back is None else looks_back

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        return self.convolved(past.before(self, x, self.looks_back) if self.looks_back else x)

    def convolved(self, x: Tensor) -> Tensor:
        """Of frames that have those before them in front."""
        if not (_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32):
            return super().forward(x)
        # conv3d takes another way for small pictures, by 27 copies of them: half as fast.
        padding, stride, dilation = [list(map(int, n)) for n in (self.padding, self.stride, self.dilation)]
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, stride, dilation, 1)


class ChannelNorm(nn.Module):
    """x / max(|x|, 1e-12)·√C·gamma, |x| over the channels. images: [N, C, H, W], not [B, C, T, H, W]."""

    def __init__(self, channels: int, *, images: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * (2 if images else 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.into(torch.empty_like(x), x)

    def into(self, out: Tensor, x: Tensor) -> Tensor:
        """Writes the result to `out`."""
        torch.div(x, length(x, out).clamp_min_(1e-12), out=out)
        return out.mul_(self.gamma * x.shape[1] ** 0.5)


def length(x: Tensor, scratch: Tensor) -> Tensor:
    """Of the vectors of channels: [B, C, ...] -> [B, 1, ...]. scratch: of the shape of x, overwritten."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        # vector_norm takes five times as long on the CPU. Narrower types would overflow here.
        return torch.mul(x, x, out=scratch).sum(dim=1, keepdim=True).sqrt_()
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def norm_silu_window(norm: nn.Module, conv: nn.Module, x: Tensor, past: Past) -> Tensor:
    """What `conv.convolved` needs for conv(SiLU(norm(x))): computed where it is read, and not copied. x is
    not needed any more then, and its memory may be freed before the convolution."""
    assert isinstance(norm, ChannelNorm) and isinstance(conv, CausalConv3d)
    count = conv.looks_back
    window = past.window(conv, x, count)
    F.silu(norm.into(window[:, :, count:], x), inplace=True)
    return past.keep(conv, window, count)
