# SPDX-License-Identifier: Apache-2.0
"""Two checkouts of the engine in turns: is one slower, and does it plan longer?

    python benchmarks/pairs.py OLD NEW --rounds 10 --json pairs.json

OLD, NEW: folders of checkouts, each with its native module. Each has a process of its own, on one thread.
They work one after the other and change places in every round. Seconds are processor time, so that other work
on the machine disturbs both alike. What is printed is NEW / OLD of each pair: the median, least and most.

16 frames, 128 frames: the model of bench_engine.py, 10 steps, in the steady state of the longer video.
lag 5, lag 50, blocks: eight endless streams of a model of the bundled size, of 50 steps or in blocks of 3
frames with 4; per pass, and planning of it. gain: eight streams in one batch against one alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

HERE = Path(__file__).resolve()


def worker() -> None:
    """Says that it is ready, then works once per line that it is given, and prints seconds as JSON."""
    import torch

    from ardiff_engine import plan
    from ardiff_engine.diffusion import NoiseSchedule, solvers
    from ardiff_engine.engine import Engine, Request, Stream
    from ardiff_engine.memory import RecomputedWindow, Window
    from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer

    torch.set_num_threads(1)
    # The engine's own clocks count the time of this thread alone.
    clock = types.SimpleNamespace(perf_counter=time.thread_time)
    for name, module in list(sys.modules.items()):
        if name.startswith("ardiff_engine.engine") and isinstance(
            getattr(module, "time", None), types.ModuleType
        ):
            module.__dict__["time"] = clock
    schedule = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)

    def engine(config: ARDiffusionConfig, steps: int, memory: Window | RecomputedWindow) -> Engine:
        model, generator = ARDiffusionTransformer(config).eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 2:
                    gain = 0.1 if "adaLN_modulation" in name else 1.0
                    weight.normal_(std=gain * weight.shape[1] ** -0.5, generator=generator)
        solver = solvers.DDIM(schedule, num_inference_steps=steps)
        return Engine(model, solver=solver, memory=memory, max_pages=400)

    def advance(engine: Engine, streams: list[Stream], passes: int) -> float:
        began = time.process_time()
        several = "passes" in inspect.signature(engine.step).parameters
        end = streams[0].ticks_done + passes
        while streams[0].ticks_done < end:
            engine.step(*([min(8, end - streams[0].ticks_done)] if several else []))
            for stream in streams:
                stream.take_ready()
        return time.process_time() - began

    large = ARDiffusionConfig(width=384, depth=8, heads=6)
    small = ARDiffusionConfig(
        tokens_per_frame=4,
        channels=16,
        width=192,
        depth=4,
        heads=6,
        context_tokens=4,
        context_dim=64,
        num_classes=10,
    )
    whole = engine(large, 10, RecomputedWindow(16))
    long = {
        "128 frames recomputed": engine(large, 10, RecomputedWindow(16)),
        "128 frames rolling": engine(large, 10, Window(16)),
    }
    runs = {name: (own, [own.submit(Request(num_frames=None, lag=1))], 5) for name, own in long.items()}
    for lag, count in ((5, 8), (50, 8), (5, 1)):
        own = engine(small, 50, Window(16))
        streams = [own.submit(Request(num_frames=None, lag=lag, seed=seed)) for seed in range(count)]
        runs[f"lag {lag}" if count > 1 else "alone"] = own, streams, 50
    if hasattr(plan, "blocks"):
        own = engine(small, 4, Window(21))
        asked = [Request(num_frames=None, plan=plan.blocks(3), seed=seed) for seed in range(8)]
        runs["blocks"] = own, [own.submit(request) for request in asked], 40
    # Until windows slide: at lag 50 a frame takes 50 passes.
    warm_up = {"128 frames recomputed": 18, "128 frames rolling": 18, "blocks": 40, "lag 50": 850}
    for name, (own, streams, _) in runs.items():
        advance(own, streams, warm_up.get(name, 90))

    def seconds() -> dict[str, float]:
        began = time.process_time()
        whole.submit(Request(num_frames=16, lag=1)).result()
        found = {"16 frames": time.process_time() - began}
        for name, (own, streams, passes) in runs.items():
            planned = own.stats().planning_seconds
            found[name] = advance(own, streams, passes) / passes
            if len(streams) > 1:
                found[f"{name}, planning"] = (own.stats().planning_seconds - planned) / passes
                found[f"{name}, share"] = found[f"{name}, planning"] / found[name]
        found["gain"] = 8 * found.pop("alone") / found["lag 5"]
        return found

    seconds()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(seconds()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    workers = []
    for tree in (options.old, options.new):
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", f"import runpy; runpy.run_path({str(HERE)!r})['worker']()"]
        pipe = subprocess.PIPE
        workers.append(
            subprocess.Popen(command, env=environment, cwd=tree, stdin=pipe, stdout=pipe, text=True)
        )
    said: list[list[dict[str, float]]] = [[], []]
    for number, process in enumerate(workers):
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            sys.exit(f"the checkout {(options.old, options.new)[number]} does not run: see above")
    for round_ in range(options.rounds):
        for number in (0, 1) if round_ % 2 == 0 else (1, 0):
            process = workers[number]
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("once\n")
            process.stdin.flush()
            said[number].append(json.loads(process.stdout.readline()))
        if options.json:
            options.json.write_text(json.dumps({"old": said[0], "new": said[1]}, indent=1) + "\n")
    for process in workers:
        process.communicate()
    for name in said[1][0]:
        new = statistics.median(row[name] for row in said[1])
        if name not in said[0][0]:
            print(f"{name:32s} new {new:.3g}")
            continue
        ratios = sorted(b[name] / a[name] for a, b in zip(*said, strict=True))
        old = statistics.median(row[name] for row in said[0])
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"{name:32s} old {old:.3g}  new {new:.3g}  new / old {ratio}")


if __name__ == "__main__":
    main()
