# SPDX-License-Identifier: Apache-2.0
"""What runs here, and why: versions, processor, native module, GPU, and the backend of every op.

`python -m ardiff_engine.info`, or `ardiff info [--json]`. Paste its output into bug reports.
`python -m ardiff_engine.info --check` computes with every op and compares (`self_check`).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from ardiff_engine import ops
from ardiff_engine._native import cuda, native, why_not
from ardiff_engine.ops.cuda_route import why_cuda
from ardiff_engine.version import __version__

PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tqdm",
    "pillow",
    "av",
    "scikit-learn",
    "triton",
    "cupy-cuda13x",
    "nvtx",
    "prometheus-client",
)


def collect() -> dict[str, Any]:
    """The facts as nested plain values, ready for JSON. None means: not there."""
    return {
        "ardiff_engine": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {
            "model": _cpu_model(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
            "torch_threads": torch.get_num_threads(),
        },
        "native": _native(),
        "cuda": _cuda(),
        "backends": {
            op: {device: {"backend": choice.name, "reason": choice.reason} for device, choice in row.items()}
            for op, row in ops.backends().items()
        },
    }


def render(facts: dict[str, Any]) -> str:
    """The facts as text for people."""
    lines = [f"ardiff-engine {facts['ardiff_engine']}   Python {facts['python']}   {facts['platform']}"]
    lines += ["", "packages"]
    lines += [f"  {name:<17} {version or 'not installed'}" for name, version in facts["packages"].items()]
    for section in ("cpu", "native", "cuda"):
        lines += ["", section]
        lines += [f"  {name:<17} {_text(value)}" for name, value in facts[section].items()]
    lines += ["", "backend of each op"]
    width = max((len(op) for op in facts["backends"]), default=0)
    for op, row in facts["backends"].items():
        for device, choice in row.items():
            lines.append(f"  {op:<{width}}  {device:<5} {choice['backend']:<10} {choice['reason']}")
    return "\n".join(lines)


def main(as_json: bool = False, check: bool = False) -> int:
    """Prints the facts, or with `check` the self-test of every op; exit code 1 if an op is wrong."""
    if check:
        from ardiff_engine import self_check

        results = self_check.check()
        print(self_check.table(results))
        wrong = sum(not one.good for one in results)
        print(f"{len(results)} checks, {wrong} failed" if wrong else f"{len(results)} checks, all good")
        return 1 if wrong or not results else 0
    facts = collect()
    print(json.dumps(facts, indent=2) if as_json else render(facts))
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Not Linux: the general answer below has to do.
    return platform.processor() or platform.machine()


def _native() -> dict[str, Any]:
    module = native()
    if module is None:
        return {"loaded": False, "reason": why_not()}
    build = module.build_info()
    return {
        "loaded": True,
        "file": module.__file__,
        "isa": module.isa(),
        "isas_usable": build["isas"],
        "threads": module.max_threads(),
        "compiler": build["compiler"],
        "openmp": build["openmp"],
        "cuda": build["cuda"],
        "cuda_kernels": why_cuda(),
        **_cuda_versions(),
    }


def _cuda_versions() -> dict[str, str]:
    """Of the driver on this machine and of the toolkit that the CUDA kernels were built with."""
    module = cuda()
    if module is None:
        return {}
    driver, toolkit = (f"{number // 1000}.{number % 1000 // 10}" for number in module.versions())
    return {"cuda_toolkit": toolkit, "cuda_driver": driver if driver != "0.0" else "none installed"}


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "no NVIDIA GPU or driver found" if built else "this PyTorch was built without CUDA"
        return {"available": False, "reason": reason}
    return {
        "available": True,
        "torch_cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main("--json" in sys.argv[1:], "--check" in sys.argv[1:]))
