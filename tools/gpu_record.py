# SPDX-License-Identifier: Apache-2.0
"""Writes the record of a GPU machine: benchmarks/results/<gpu>.json.

    tests       the tests marked `gpu`
    sanitizer   compute-sanitizer (memcheck, then synccheck) on small cases, where it is installed
    benchmarks  every op on the shapes of docs/kernels.md, beside the copy rate and unfused PyTorch
    engine      a tick of one frame, with and without CUDA graphs, beside reading the weights once

with GPU, driver, date, commit, and the machine's own GEMM and copy rates: a time says little without them.
Exit code 0 only if tests and sanitizer passed. `make gpu` runs it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ardiff_engine import info, ops
from ardiff_engine.ops.backend import choose
from ardiff_engine.ops.frame_attention_cuda import frame_attention_cuda, which_kernel
from ardiff_engine.ops.frame_table import FrameTable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TOKENS, WIDTH, HEADS, DIM = 4680, 1536, 12, 128
FRAMES, LATENTS = 3, 99_840  # a chunk of Wan 2.1 1.3B at 480x832
REPEATS = 50
# What the sanitizer runs: the smallest shapes of each kernel.
SMALLEST = {
    "test_cuda_ops.py": "add_noise and 3 and 7 or solver_step and 3 and 7 or bad_ or modulate and 10"
    " or norm_rope and 10",
    "test_cuda_frame_attention.py": "page_rows and 16 or parts_are_merged or out_of_range or causal",
    "test_cuda_frame_attention_sm90.py": "page_rows and 112 or parts_are_merged or out_of_range or tall",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One call of op `name`, the bytes that it cannot avoid, and PyTorch's way to the same result."""

    name: str
    call: Callable[[], object]
    bytes: int
    unfused: Callable[[], object] | None = None
    flops: int = 0
    shape: str = ""
    kernel: str = ""  # of several that a backend has


@dataclass(frozen=True, slots=True)
class Timing:
    name: str
    shape: str
    backend: str
    microseconds: float
    gigabytes_per_second: float
    share_of_copy_rate: float
    teraflops: float
    times_faster_than_pytorch: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--no-tests", action="store_true", help="benchmarks alone")
    options = parser.parse_args()
    os.environ["ARDIFF_HOPPER"] = "1"  # both kernels of frame_attention are timed
    if not torch.cuda.is_available():
        print(f"gpu_record: torch {torch.__version__} sees no NVIDIA GPU, so there is nothing to record")
        return 1
    checks = {} if options.no_tests else {"tests": _tests(), "sanitizer": _sanitizer()}
    copy_rate, gemm_rate = _copy_rate(), _gemm_rate()
    print(f"copy {copy_rate:.0f} GB/s, bfloat16 GEMM {gemm_rate:.0f} TFLOP/s")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "changed_files": _output("git", "-C", str(ROOT), "status", "--porcelain"),
        "gpu": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "copy_gigabytes_per_second": copy_rate,
        "gemm_bfloat16_teraflops": gemm_rate,
        **checks,
        "ops": [asdict(_time(case, copy_rate)) for case in _cases()],
        "engine": [_engine(cuda_graphs) for cuda_graphs in (True, False)],
        "machine": info.collect(),
    }
    name = re.sub(r"[^a-z0-9]+", "-", record["gpu"].lower()).strip("-")
    target = options.out or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    print(f"gpu_record: {target}")
    return 1 if any(check["failed"] for check in checks.values()) else 0


def _tests() -> dict[str, Any]:
    return _run_checked([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "python_tests")])


def _sanitizer() -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"failed": False, "summary": "not run: there is no compute-sanitizer here"}
    results = []
    for check in ("memcheck", "synccheck"):
        for file, smallest in SMALLEST.items():
            command = [tool, "--tool", check, "--error-exitcode", "1", "--target-processes", "all"]
            command += [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "-k", smallest]
            results.append(_run_checked([*command, str(ROOT / "python_tests" / file)]))
    return {"failed": any(r["failed"] for r in results), "summary": " | ".join(r["summary"] for r in results)}


def _run_checked(command: list[str]) -> dict[str, Any]:
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = (result.stdout + result.stderr).strip().splitlines()
    print("\n".join(lines if result.returncode else lines[-1:]), flush=True)
    return {"failed": result.returncode != 0, "summary": lines[-1] if lines else ""}


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _microseconds(call: Callable[[], object]) -> float:
    """The median of REPEATS calls, each after the L2 cache was overwritten."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        call()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def _copy_rate() -> float:
    """GB/s of reading and writing 1 GiB each."""
    source = torch.empty(2**28, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _microseconds(lambda: target.copy_(source)) / 1e3


def _gemm_rate(size: int = 8192) -> float:
    """TFLOP/s, on random numbers: zeros run faster."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _microseconds(lambda: a @ b) / 1e6


def _time(case: Case, copy_rate: float) -> Timing:
    microseconds = _microseconds(case.call)
    rate = case.bytes / microseconds / 1e3
    faster = None if case.unfused is None else _microseconds(case.unfused) / microseconds
    sample = torch.empty(0, device="cuda", dtype=torch.bfloat16)
    backend = f"{choose(case.name, sample).name} {case.kernel}".strip()
    teraflops = case.flops / microseconds / 1e6
    what = f"{case.name} {case.shape}".strip()
    speed = f"{teraflops:6.0f} TFLOP/s" if case.flops else f"{rate:6.0f} GB/s"
    print(f"{what:<36} {backend:<12} {microseconds:8.1f} us  {speed}", flush=True)
    return Timing(case.name, case.shape, backend, microseconds, rate, rate / copy_rate, teraflops, faster)


def _engine(cuda_graphs: bool) -> dict[str, Any]:
    """benchmarks/bench_engine_cuda.py; on the kernels that the engine chooses by itself."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    ticks = importlib.import_module("bench_engine_cuda").one_cell_ticks(cuda_graphs=cuda_graphs)
    print(
        f"tick of one cell, {'graphs' if cuda_graphs else 'eager'}: {ticks.seconds * 1e3:.3f} ms, "
        f"{ticks.times_the_floor:.2f} times reading the weights",
        flush=True,
    )
    return asdict(ticks)


def _cases() -> list[Case]:
    def half(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    x, branch, table, bias = (
        half(TOKENS, WIDTH),
        half(TOKENS, WIDTH),
        half(FRAMES + 1, 3 * WIDTH),
        half(WIDTH),
    )
    shift, scale, gate = table.split(WIDTH, dim=1)
    ids = (torch.arange(TOKENS, device="cuda") * FRAMES // TOKENS).int()
    qkv, weight = half(TOKENS, 3 * WIDTH), half(WIDTH)
    page_rows = 112
    pages = -(-TOKENS // FRAMES // page_rows)
    pool = half(2, 30, 2 * FRAMES * pages, HEADS, page_rows, DIM)
    tokens = torch.arange(TOKENS, device="cuda")
    slots = tokens // (TOKENS // FRAMES) * pages * page_rows + tokens % (TOKENS // FRAMES)
    frequencies = 10000.0 ** (-torch.arange(0, DIM, 2, dtype=torch.float64, device="cuda") / DIM)
    latents = torch.randn(FRAMES, LATENTS, device="cuda")
    level = torch.rand(FRAMES, device="cuda")
    keys = torch.arange(5 * FRAMES, device="cuda").reshape(FRAMES, 5)
    coefficients = torch.rand(FRAMES, 7, device="cuda")
    coefficients[:, 4:] = 0
    one = torch.ones(1, FRAMES, device="cuda")
    frame = torch.arange(pages, device="cuda")

    def unfused_modulate() -> torch.Tensor:
        normed = torch.nn.functional.layer_norm(x.float(), (WIDTH,), eps=1e-6)
        return (normed * (1 + scale.float()[ids]) + shift.float()[ids]).bfloat16()

    def norm_rope_write() -> torch.Tensor:
        return ops.norm_rope_write_(
            qkv, pool[0, 0], pool[1, 0], slots, tokens, heads=HEADS, norm="rms_full",
            q_weight=weight, k_weight=weight, frequencies=frequencies,
        )  # fmt: skip

    def noising() -> tuple[torch.Tensor, torch.Tensor]:
        eps, a, s = torch.randn_like(latents), level[:, None], level[:, None]
        return a * latents + s * eps, a * eps - s * latents

    frame_bytes = 30 * pages * page_rows * HEADS * DIM * 2
    return [
        Case("norm_rope_write_", norm_rope_write, 2 * qkv.nbytes),
        Case("modulate", lambda: ops.modulate(x, shift, scale, ids), 2 * x.nbytes, unfused_modulate),
        Case(
            "gate_residual",
            lambda: ops.gate_residual_(x, branch, gate, ids, bias=bias),
            3 * x.nbytes,
            lambda: x + gate[ids] * (branch + bias),
        ),
        Case(
            "add_noise",
            lambda: ops.add_noise(latents, level, level, keys=keys, target="v"),
            3 * latents.nbytes,
            noising,
        ),
        Case(
            "solver_step",
            lambda: ops.solver_step(latents, latents[None], one, coefficients),
            4 * latents.nbytes,
        ),
        Case("philox_normal", lambda: ops.philox_normal(keys, LATENTS), latents.nbytes),
        Case("copy_pages_", lambda: ops.copy_pages_(*pool, frame, frame + pages), 4 * frame_bytes),
        Case(
            "rotate_pages_",
            lambda: ops.rotate_pages_(pool[0], frame, frame, frequencies),
            2 * frame_bytes,
        ),
        *_attention(1, TOKENS, 4 * TOKENS, HEADS, DIM, page_rows),
        *_attention(1, TOKENS, 7 * TOKENS, HEADS, DIM, page_rows),
        *_attention(1, TOKENS // FRAMES, 3 * TOKENS, HEADS, DIM, page_rows),
        *_attention(64, 32, 589, 16, 72, 32),
    ]


def _attention(streams: int, queries: int, keys: int, heads: int, dim: int, rows: int) -> list[Case]:
    """`queries` of each stream over `keys` of its own, beside SDPA on contiguous keys: cuDNN's, if it can.

    Once per kernel that the GPU has: on Hopper with its own kernel, and with that of sm_80."""
    listed = -(-keys // rows)
    ids = torch.randperm(streams * listed).reshape(streams, listed).tolist()
    valid = [rows] * (listed - 1) + [keys - rows * (listed - 1)]
    table = FrameTable.build([queries] * streams, ids, [valid] * streams, device="cuda")
    q, k, v = (
        torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        for shape in ((streams * queries, heads, dim), *[(streams * listed, heads, rows, dim)] * 2)
    )
    dense = [torch.randn(streams, heads, n, dim, device="cuda").bfloat16() for n in (queries, keys, keys)]

    def sdpa() -> torch.Tensor:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(*dense)

    def case(kernel: str, call: Callable[[], object]) -> Case:
        return Case(
            "frame_attention",
            call,
            2 * q.nbytes + streams * 4 * keys * heads * dim,
            sdpa,
            4 * streams * queries * keys * heads * dim,
            f"{streams} x {queries} x {keys}, {heads} x {dim}",
            kernel,
        )

    def on_sm80() -> object:
        return frame_attention_cuda(
            q, k, v, table.frame_ptr, table.group_ptr, table.page_ptr, table.pages, table.valid, table.seen,
            table.bias, dim**-0.5, kernel="sm_80",
        )  # fmt: skip

    if choose("frame_attention", q, k, v).name != "cuda":
        return [case("", lambda: ops.frame_attention(q, k, v, table))]
    chosen = which_kernel(q, k, v).name
    cases = [case(chosen, lambda: ops.frame_attention(q, k, v, table))]
    return cases if chosen == "sm_80" else [*cases, case("sm_80", on_sm80)]


if __name__ == "__main__":
    sys.exit(main())
