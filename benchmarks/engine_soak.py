# SPDX-License-Identifier: Apache-2.0
"""Does anything leak? Many frames over streams that come, go and are cancelled, in one engine.

    python benchmarks/engine_soak.py                                    # 10,000 frames, 5 % cancelled
    python benchmarks/engine_soak.py --endless --streams 2 --cancel 0   # endless streams, memory.Window
    python benchmarks/engine_soak.py --frames 500 --json soak.json      # a short run; with the report as JSON

A tiny model with random weights: what is watched is the engine, not the network. Streams have mixed lengths,
lags, guidance scales, seeds and ways to be cancelled (cancel(), or leaving the loop over their frames); each
that ends is replaced by a new one. Reported: pages still held when all streams are gone, the range of pages
held on the way, and the slope of the resident memory with its 95 % confidence interval.

The slope: the resident memory is read after every pass. The first quarter of the frames is left out, in which
the C heap finds its size (a few MB over some 2000 frames; short runs show that as a slope). The rest is cut
into 20 blocks of as many frames, and a line is fitted through the blocks' means: neighbouring readings depend
on each other, means of long blocks hardly.

Exit code 1 if pages leaked or a stream failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.errors import ArdiffError, ConfigError, explain
from ardiff_engine.memory import RecomputedWindow, Window
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer

STEPS, WINDOW = 10, 8
# A window of 8 holds every unfinished frame of these lags; lag 0 only suits videos that fit the window.
LAGS = (2, 5, 10)
WARM_UP = 0.25
BLOCKS = 20
# Two-sided 95 % quantile of Student's t with BLOCKS - 2 degrees of freedom.
T_QUANTILE = 2.1009
STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Slope:
    """Of the resident memory, in MB per 1000 frames: estimate and 95 % confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a soak found. Pages in flight: after each pass beyond the warm-up."""

    frames: int
    streams: int
    cancelled: int
    failed: int
    leaked_pages: int
    pages_total: int
    pages_in_flight_least: int
    pages_in_flight_most: int
    resident_mb_start: float
    resident_mb_end: float
    slope_mb_per_1000_frames: Slope | None
    seconds: float


@dataclass(slots=True)
class Job:
    """A running stream, and after how many frames its reader loses interest (None: never)."""

    stream: Stream
    cancel_after: int | None
    frames: int = 0


class Load:
    """Draws what users ask for, reproducibly."""

    def __init__(self, seed: int, cancel: float, endless: bool) -> None:
        self._random = random.Random(seed)
        self._cancel = cancel
        self._endless = endless
        self.streams = 0

    def submit(self, engine: Engine) -> Job:
        draw = self._random
        self.streams += 1
        length = None if self._endless else draw.randint(1, 4 * WINDOW)
        fits = length is not None and length <= WINDOW
        request = Request(
            num_frames=length,
            lag=draw.choice((0, 1, *LAGS) if fits else LAGS),
            guidance_scale=draw.choice((1.0, 2.0)),
            seed=draw.getrandbits(32),
        )
        # In an endless stream the reader leaves within as many frames as a long video has.
        leaves = draw.random() < self._cancel
        stop = draw.randint(0, (4 * WINDOW if length is None else length) - 1)
        return Job(engine.submit(request), stop if leaves else None)

    def leave(self, stream: Stream) -> None:
        if self._random.random() < 0.5:
            stream.cancel()
        else:
            for _ in stream:
                break


def tiny_engine(streams: int, rolling: bool) -> Engine:
    config = ARDiffusionConfig(
        num_frames=WINDOW, tokens_per_frame=4, width=32, depth=2, heads=2, context_tokens=3, context_dim=8
    )
    model = ARDiffusionTransformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    # Two branches of one context page and at most 2 * WINDOW + 1 frames of one page.
    pages = streams * 2 * (2 * WINDOW + 2)
    solver = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), num_inference_steps=STEPS)
    memory = Window(WINDOW) if rolling else RecomputedWindow(WINDOW)
    return Engine(model, solver=solver, memory=memory, max_pages=pages)


def resident_mb() -> float:
    try:
        pages = int(STATM.read_text().split()[1])
    except OSError:
        raise ConfigError(
            explain("resident memory", got=f"no {STATM}", expected="Linux", fix="Run the soak there.")
        ) from None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class ResidentTrend:
    """The resident memory over the frames of a soak, as sums of blocks: a list would itself be a slope."""

    def __init__(self, frames: int) -> None:
        self._first = WARM_UP * frames
        self._block = (frames - self._first) / BLOCKS
        self._count = [0] * BLOCKS
        self._frames = [0.0] * BLOCKS
        self._megabytes = [0.0] * BLOCKS

    def add(self, frame: int, megabytes: float) -> None:
        if frame < self._first:
            return
        block = min(int((frame - self._first) / self._block), BLOCKS - 1)
        self._count[block] += 1
        self._frames[block] += frame
        self._megabytes[block] += megabytes

    def slope(self) -> Slope | None:
        """The least-squares line through the blocks' means; None if a block got no reading."""
        if not all(self._count):
            return None
        x = [frames / count / 1000 for frames, count in zip(self._frames, self._count, strict=True)]
        y = [value / count for value, count in zip(self._megabytes, self._count, strict=True)]
        x_mean, y_mean = sum(x) / BLOCKS, sum(y) / BLOCKS
        spread = sum((a - x_mean) ** 2 for a in x)
        estimate = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
        rest = sum((b - y_mean - estimate * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
        half = T_QUANTILE * math.sqrt(rest / (BLOCKS - 2) / spread)
        return Slope(estimate, estimate - half, estimate + half)


def soak(frames: int, streams: int, cancel: float, seed: int, endless: bool, rolling: bool) -> Report:
    engine = tiny_engine(streams, rolling)
    load = Load(seed, cancel, endless)
    jobs: list[Job] = []
    made = cancelled = failed = 0
    trend, start, end = ResidentTrend(frames), resident_mb(), 0.0
    least, most = engine.stats().pages_total, 0
    began = time.perf_counter()
    with tqdm(total=frames, unit="frame", desc="soak") as bar:
        while made < frames and not failed:
            while len(jobs) < streams:
                jobs.append(load.submit(engine))
            try:
                engine.step()
            except ArdiffError as error:
                tqdm.write(f"a pass failed: {error}", file=sys.stderr)
            going = []
            for job in jobs:
                ready = len(job.stream.take_ready())
                job.frames += ready
                made += ready
                bar.update(ready)
                if job.stream.done:
                    failed += not finished_well(job.stream)
                elif job.cancel_after is not None and job.frames >= job.cancel_after:
                    load.leave(job.stream)
                    cancelled += 1
                else:
                    going.append(job)
            jobs = going
            end = resident_mb()
            trend.add(made, end)
            if made >= WARM_UP * frames:
                held = engine.stats().pages_held
                least, most = min(least, held), max(most, held)
    for job in jobs:
        job.stream.cancel()
    stats = engine.stats()
    return Report(
        frames=made,
        streams=load.streams,
        cancelled=cancelled,
        failed=failed,
        leaked_pages=stats.pages_total - stats.pages_free,
        pages_total=stats.pages_total,
        pages_in_flight_least=least,
        pages_in_flight_most=most,
        resident_mb_start=start,
        resident_mb_end=end,
        slope_mb_per_1000_frames=trend.slope(),
        seconds=time.perf_counter() - began,
    )


def finished_well(stream: Stream) -> bool:
    try:
        stream.raise_if_failed()
    except ArdiffError as error:
        tqdm.write(f"a stream failed: {error}", file=sys.stderr)
        return False
    return True


def text(report: Report) -> str:
    slope = report.slope_mb_per_1000_frames
    lines = [
        f"{report.frames} frames of {report.streams} streams in {report.seconds:.0f} s; "
        f"{report.cancelled} cancelled, {report.failed} failed",
        f"leaked pages: {report.leaked_pages} of {report.pages_total}; "
        f"in flight: {report.pages_in_flight_least} to {report.pages_in_flight_most}",
        f"resident memory: {report.resident_mb_start:.1f} MB -> {report.resident_mb_end:.1f} MB",
    ]
    if slope is None:
        lines.append(f"slope: too few frames for {BLOCKS} blocks")
    else:
        lines.append(
            f"slope: {slope.estimate:+.4f} MB per 1000 frames, "
            f"95 % confidence interval {slope.low:+.4f} to {slope.high:+.4f}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description="Run many frames over mixed streams and report what leaks.",
        epilog="see the head of benchmarks/engine_soak.py",
    )
    options.add_argument("--frames", type=int, default=10_000, help="frames to make (default: %(default)s)")
    options.add_argument("--streams", type=int, default=6, help="streams at a time (default: %(default)s)")
    options.add_argument(
        "--cancel",
        type=float,
        default=0.05,
        help="share of streams that are cancelled (default: %(default)s)",
    )
    options.add_argument("--endless", action="store_true", help="streams without an end")
    options.add_argument(
        "--memory", choices=("rolling", "recomputed"), default="rolling", help="window (default: %(default)s)"
    )
    options.add_argument("--threads", type=int, default=1, help="torch's threads (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of what is asked for (default: %(default)s)")
    options.add_argument("--json", metavar="PATH", help="also write the report to this file")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    options = command.parse_args(arguments)
    if options.frames < 1 or options.streams < 1 or options.threads < 1 or not 0 <= options.cancel <= 1:
        command.error("--frames, --streams and --threads are at least 1, --cancel lies between 0 and 1")
    torch.set_num_threads(options.threads)
    report = soak(
        options.frames,
        options.streams,
        options.cancel,
        options.seed,
        options.endless,
        options.memory == "rolling",
    )
    print(text(report))
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(report), indent=2) + "\n")
    return 1 if report.leaked_pages or report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
