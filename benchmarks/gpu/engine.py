# SPDX-License-Identifier: Apache-2.0
"""A tick of one frame, with CUDA graphs or without, beside reading the weights once.

    python benchmarks/gpu/engine.py --variant graphs      # or eager

What is measured, and why: benchmarks/bench_engine_cuda.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench_engine_cuda import one_cell_ticks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=("graphs", "eager"), default="graphs")
    parser.add_argument("--json", type=Path, help="append one line to this file")
    options = parser.parse_args()
    line = json.dumps(asdict(one_cell_ticks(cuda_graphs=options.variant == "graphs")))
    print(line)
    if options.json is not None:
        with options.json.open("a") as lines:
            lines.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
