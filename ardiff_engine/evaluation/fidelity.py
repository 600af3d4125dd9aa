# SPDX-License-Identifier: Apache-2.0
"""How near videos are to the ones they should be: PSNR and SSIM of torchmetrics, and LPIPS.

A measure for reconstructions and for frames that are known, not for generated videos: a blurred frame beats a
sharp one that is a pixel aside.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.training.lpips import Lpips


@torch.no_grad()
def fidelity(
    frames: NDArray[np.uint8], truth: NDArray[np.uint8], *, lpips: Lpips | None = None
) -> Mapping[str, float]:
    """uint8 [T, H, W, 3] twice -> means over frames.

    psnr: dB, 10 log10(255² / mean squared error) of each frame. ssim: Wang et al. 2004, Gaussian window of
    11, of the color planes. lpips: Zhang et al. 2018 with VGG, where its weights are given.

    Raises:
        TensorError: videos of different shapes, or frames under 11 pixels.
        ConfigError: torchmetrics is not installed.
    """
    if frames.shape != truth.shape or frames.ndim != 4 or min(frames.shape[1:3]) < 11:
        raise TensorError(
            f"videos: got {frames.shape} and {truth.shape}, expected one shape [frames, height, width, 3] of "
            "at least 11 x 11 pixels."
        )
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError(
            "PSNR and SSIM need torchmetrics: pip install 'ardiff-engine[evaluate]'."
        ) from error
    one, other = _planes(frames), _planes(truth)
    # Data ranges as numbers, not as what the pictures happen to span.
    psnr = peak_signal_noise_ratio(one, other, data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(one, other, data_range=1.0)
    if not isinstance(ssim, Tensor):
        ssim = ssim[0]
    found = {"psnr": float(psnr), "ssim": float(ssim)}
    if lpips is not None:
        found["lpips"] = float(lpips(one, other).mean())
    return found


def _planes(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
