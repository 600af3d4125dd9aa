# SPDX-License-Identifier: Apache-2.0
"""The CUDA frame attention kernel, compiled for the CPU with emulated instructions, for tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from ardiff_engine.ops.frame_table import FrameTable

ROOT = Path(__file__).resolve().parent.parent.parent
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FORWARD, BACKWARD, RANDOM = range(3)  # which warp runs first


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "o", "lse")),
        *((name, ctypes.c_void_p) for name in ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid")),
        *((name, ctypes.c_void_p) for name in ("seen", "bias")),
        *((name, ctypes.c_int64) for name in ("groups", "heads", "kv_heads", "dim", "num_pages")),
        *((name, ctypes.c_int64) for name in ("q_bytes", "pool_bytes")),
        ("q_strides", ctypes.c_int64 * 2),
        ("k_strides", ctypes.c_int64 * 3),
        ("v_strides", ctypes.c_int64 * 3),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("storage", "multiprocessors", "order")),
    ]


class Outcome(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("status", "flags", "tile_rows", "parts")),
        *((name, ctypes.c_int64) for name in ("bank_conflicts", "mma", "copies", "largest_shared")),
        ("error", ctypes.c_char * 256),
    ]


def build(folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler, "no C++ compiler: the native module cannot have been built either"
    library, here = folder / "frame_attention.so", Path(__file__).resolve().parent
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas", "-Wno-attributes"]
    command += [f"-I{path}" for path in (here, ROOT / "csrc" / "include", ROOT / "csrc")]
    command += [str(here / "frame_attention.cpp"), str(ROOT / "csrc/cpu/common/attention_work.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@dataclass(frozen=True)
class Result:
    o: torch.Tensor
    lse: torch.Tensor
    outcome: Outcome


def emulate(
    emulator: ctypes.CDLL,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: FrameTable,
    *,
    scale: float | None = None,
    multiprocessors: int = 1,
    order: int = FORWARD,
) -> Result:
    """frame_attention of the CUDA kernel on a CPU; outputs start as NaN."""
    o, lse = torch.full(q.shape, torch.nan, dtype=q.dtype), torch.full(q.shape[:2], torch.nan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    address = torch.Tensor.data_ptr
    problem = Problem(
        address(q), address(k), address(v), address(o), address(lse),
        *(address(getattr(table, name)) for name in ("frame_ptr", "group_ptr", "page_ptr")),
        address(table.pages), address(table.valid), address(table.seen),
        None if table.bias is None else address(table.bias),
        table.num_groups, q.shape[1], k.shape[1], q.shape[2], k.shape[0],
        q.untyped_storage().nbytes(), max(x.untyped_storage().nbytes() for x in (k, v)),
        q.stride()[:2], k.stride()[:3], v.stride()[:3],
        scale, STORAGE[q.dtype], multiprocessors, order,
    )  # fmt: skip
    outcome = Outcome()
    emulator.emulate_frame_attention(ctypes.byref(problem), ctypes.byref(outcome))
    assert outcome.error == b""
    return Result(o, lse, outcome)
