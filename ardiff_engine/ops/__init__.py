# SPDX-License-Identifier: Apache-2.0
"""The kernels, one module each: contract, argument checks, PyTorch reference and choice of backend."""

from ardiff_engine.ops.add_noise import add_noise
from ardiff_engine.ops.backend import backends
from ardiff_engine.ops.bias_gelu import bias_gelu
from ardiff_engine.ops.cuda_launch import check_device
from ardiff_engine.ops.frame_attention import frame_attention
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.ops.gate_residual import gate_residual, gate_residual_
from ardiff_engine.ops.linear import PackedWeight, linear, pack_linear
from ardiff_engine.ops.modulate import modulate
from ardiff_engine.ops.norm_rope import norm_rope
from ardiff_engine.ops.norm_rope_pages import norm_rope_pages
from ardiff_engine.ops.norm_rope_write import norm_rope_write_
from ardiff_engine.ops.pages import copy_pages_, rotate_pages_
from ardiff_engine.ops.philox_normal import philox_normal
from ardiff_engine.ops.pool_pages import pool_pages_
from ardiff_engine.ops.sample_timesteps import sample_timesteps
from ardiff_engine.ops.solver_step import solver_step

__all__ = [
    "FrameTable",
    "PackedWeight",
    "add_noise",
    "backends",
    "bias_gelu",
    "check_device",
    "copy_pages_",
    "frame_attention",
    "gate_residual",
    "gate_residual_",
    "linear",
    "modulate",
    "norm_rope",
    "norm_rope_pages",
    "norm_rope_write_",
    "pack_linear",
    "philox_normal",
    "pool_pages_",
    "rotate_pages_",
    "sample_timesteps",
    "solver_step",
]
