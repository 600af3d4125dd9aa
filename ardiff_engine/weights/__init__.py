# SPDX-License-Identifier: Apache-2.0
"""Weights: official checkpoints, our own format, and conversion."""

from ardiff_engine.weights.convert import Conversion, convert
from ardiff_engine.weights.load import load_ar_diffusion, load_titok
from ardiff_engine.weights.load_wan import load_wan
from ardiff_engine.weights.lora import load_lora
from ardiff_engine.weights.native_format import load_model, save_model
from ardiff_engine.weights.targets import canonical_target, target_kind

__all__ = [
    "Conversion",
    "canonical_target",
    "convert",
    "load_ar_diffusion",
    "load_lora",
    "load_model",
    "load_titok",
    "load_wan",
    "save_model",
    "target_kind",
]
