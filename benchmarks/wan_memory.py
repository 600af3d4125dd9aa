# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a Wan network from its file to its first block of frames, as a share of weights and pages.

    python benchmarks/wan_memory.py [--depth 6] [--json FILE]

Layers are as wide as those of the 1.3B model; six of them and the embeddings are 1.1 GiB in float32. The
file is written and the block computed by two processes, so that nothing of the writing counts. What the
process holds after a small network has run the same does not count either. The peak is the kernel's
(VmHWM), so this runs on Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from ardiff_engine.diffusion import FlowSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.plan import blocks
from ardiff_engine.weights import load_wan
from ardiff_engine.weights.safetensors_file import write_safetensors

SIZE, BLOCK, WINDOW = (30, 52), 3, 18


def write(config: WanConfig, file: Path) -> None:
    with open(file, "wb") as out:
        write_safetensors(out, WanTransformer(config).state_dict(), {})


def run(file: Path) -> dict[str, float]:
    small = file.with_name("small.safetensors")
    write(WanConfig(width=128, depth=1, heads=1, mlp_width=96), small)
    first_block(load_wan(small), (4, 4))  # imports what the rest needs
    before = resident("VmRSS")
    model = load_wan(file)
    loaded = resident("VmHWM")
    pages = first_block(model, SIZE)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peak = resident("VmHWM") - before
    return {
        "weights_bytes": weights,
        "pages_bytes": pages,
        "loading_bytes": loaded - before,
        "peak_bytes": peak,
        "peak_share": peak / (weights + pages),
        "bar": 1.10,
    }


def first_block(model: WanTransformer, size: tuple[int, int]) -> int:
    """Makes a block of frames; bytes of the pages."""
    request = Request(num_frames=None, size=size, condition=torch.randn(64, model.config.text_dim), seed=0)
    solver, memory, plan = solvers.Euler(FlowSchedule(shift=5.0), 4), Window(WINDOW), blocks(BLOCK)
    needed = Engine.memory_plan(model, solver=solver, memory=memory, plan=plan, request=request)
    engine = Engine(model, solver=solver, memory=memory, plan=plan, max_pages=needed.pages)
    for pages in (engine.pool.k, engine.pool.v):
        pages.fill_(0)  # as a long video does: untouched memory is not there
    stream = engine.submit(request)
    list(islice(stream, BLOCK))
    stream.cancel()
    return engine.pool.k.nbytes + engine.pool.v.nbytes


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}.")


def measure(depth: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        for part in (("--write", str(file), "--depth", str(depth)), ("--run", str(file))):
            done = subprocess.run([sys.executable, __file__, *part], check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write(WanConfig(depth=options.depth), options.write)
    else:
        facts = run(options.run) if options.run is not None else measure(options.depth)
        text = json.dumps(facts, indent=2)
        print(text)
        if options.json is not None:
            options.json.write_text(text + "\n")
