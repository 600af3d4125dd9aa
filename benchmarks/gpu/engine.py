# SPDX-License-Identifier: Apache-2.0
"""A tick of one frame, with CUDA graphs or without, beside reading the weights once.

    python benchmarks/gpu/engine.py --variant graphs      # or eager

What is measured, and why: benchmarks/bench_engine_cuda.py.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from lines import options_of, put

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench_engine_cuda import one_cell_ticks


def main() -> None:
    options = options_of(__doc__.splitlines()[0], ("graphs", "eager"))
    put(asdict(one_cell_ticks(cuda_graphs=options.variant == "graphs")), options.json)


if __name__ == "__main__":
    main()
