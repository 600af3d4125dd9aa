# SPDX-License-Identifier: Apache-2.0
"""CLIP's view of a picture (Radford et al. 2021), for Wan 2.1's image-to-video models, through
`transformers` (extra `text`): the hidden states before the vision tower's last layer, class token first."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from PIL import Image

from ardiff_engine import arguments
from ardiff_engine.conditions.pretrained import pretrained
from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError


class CLIPVision:
    """Pictures to tokens [1 + (size / patch)², width]."""

    def __init__(self, encoder: Any, processor: Any) -> None:
        """encoder, processor: `CLIPVisionModel` and the image processor of its folder."""
        self._encoder: Any = encoder.eval()
        self._processor = processor

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> CLIPVision:
        """A folder in diffusers' layout: `image_encoder/` and `image_processor/`.

        Nothing is fetched, and only safetensors are read.

        Raises:
            CheckpointError: no such folder, unreadable files, or weights that are missing.
            ConfigError: `transformers` is missing, or an unknown device.
        """
        root, target = arguments.path("folder", folder), usable_device(device)
        processor = pretrained("CLIPImageProcessor", root / "image_processor")
        encoder, told = pretrained(
            "CLIPVisionModel",
            root / "image_encoder",
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
        if told["missing_keys"] or told["mismatched_keys"]:
            missing = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
            raise CheckpointError(f"{root / 'image_encoder'}: {missing[0]} is missing or of another shape.")
        return cls(encoder.to(target), processor)

    @torch.no_grad()
    def tokens(self, picture: torch.Tensor) -> torch.Tensor:
        """uint8 [H, W, 3] -> [rows, width] on the encoder's device."""
        given = self._processor(images=Image.fromarray(picture.cpu().numpy()), return_tensors="pt")
        pixels = given.pixel_values.to(self._encoder.device, self._encoder.dtype)
        hidden: torch.Tensor = self._encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[0]
