# SPDX-License-Identifier: Apache-2.0
"""Weights: official checkpoints, our own format, conversion, and writes that are whole or not there."""

from ardiff_engine.weights.atomic import remove_stale, staged, write_atomic
from ardiff_engine.weights.convert import Conversion, convert
from ardiff_engine.weights.load import load_ar_diffusion, load_titok
from ardiff_engine.weights.native_format import load_model, save_model
from ardiff_engine.weights.targets import canonical_target, target_kind

__all__ = [
    "Conversion",
    "canonical_target",
    "convert",
    "load_ar_diffusion",
    "load_model",
    "load_titok",
    "remove_stale",
    "save_model",
    "staged",
    "target_kind",
    "write_atomic",
]
