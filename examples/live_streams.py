# SPDX-License-Identifier: Apache-2.0
"""Serves live streams of one engine to asyncio readers, and changes what they show on the way."""

from __future__ import annotations

import argparse
import asyncio

import ardiff_engine as ade


async def watch(name: str, stream: ade.Stream, frames: int, switch: tuple[int, int] | None) -> None:
    """Reads `frames` frames; switch: (after frame, class). Leaving the loop cancels the stream."""
    async for frame in stream:
        print(f"{name}: frame {frame.index} after {frame.seconds:.2f} s")
        if switch is not None and frame.index == switch[0]:
            receipt = stream.set_condition(switch[1], effect="recommit")
            print(f"{name}: class {switch[1]} from frame {receipt.first_frame} on")
        if frame.index + 1 >= frames:
            break


async def serve(options: argparse.Namespace) -> None:
    pipe = ade.Pipeline.from_pretrained(options.model)
    classes = pipe.transformer.config.num_classes or 1
    solver = ade.solvers.DDIM(pipe.schedule, num_inference_steps=options.steps, prediction=pipe.prediction)
    request = ade.Request(num_frames=None, lag=options.lag, condition=0, max_ahead=4)
    plan = ade.Engine.memory_plan(pipe.transformer, solver=solver, request=request, streams=options.streams)
    print(plan)
    engine = ade.Engine(pipe.transformer, solver=solver, max_pages=plan.pages)
    readers = []
    for number in range(options.streams):
        stream = engine.submit(
            ade.Request(
                num_frames=None, lag=options.lag, condition=number % classes, seed=number, max_ahead=4
            )
        )
        switch = (options.frames // 2, (number + classes // 2) % classes) if number % 2 == 0 else None
        readers.append(watch(f"stream {number}", stream, options.frames, switch))
    await asyncio.gather(*readers)
    stats = engine.stats()
    print(f"{stats.frames} frames, {stats.cells_per_pass:.1f} cells per pass, {stats.pages_held} pages held")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="moving-digits", help="bundled model or a model folder with classes"
    )
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lag", type=int, default=10)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
