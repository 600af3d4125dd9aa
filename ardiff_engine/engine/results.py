# SPDX-License-Identifier: Apache-2.0
"""What passes computed, on its way to the streams and their readers.

Whether a pass gave finite numbers stands in device memory. On the CPU that is known at once. On a GPU, asking
at once would stop the host until the pass is done, and the GPU would then wait for the next one to be
planned. So there the answer is read one step later, when it has long arrived: streams go on as if all were
well, frames that became clean wait here for the answer, and a stream that was struck fails before any of
them reaches its reader.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import compress

import torch

from ardiff_engine.engine.decoding import Picture
from ardiff_engine.engine.runner import Outcome, Run, Runner, good
from ardiff_engine.engine.scheduler import Scheduler, broken_off
from ardiff_engine.engine.state import StreamState
from ardiff_engine.errors import ArdiffError, NumericalError, explain, wrapped
from ardiff_engine.ops.cuda_launch import check_device, own_words

Clean = list[tuple[int, torch.Tensor, torch.Tensor]]
"""Frames that became clean: number, the stream's copy, the reader's."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What one step computed. ticks: of each stream of an outcome, how many it had done before it."""

    outcomes: list[tuple[Outcome, list[int]]]
    deliveries: deque[tuple[StreamState, Clean]]


class Results:
    """passes, cells, updates, frames, first_frame_seconds: as in EngineStats."""

    def __init__(self, scheduler: Scheduler, runner: Runner, device: torch.device) -> None:
        self.passes = self.cells = self.updates = self.frames = 0
        self.first_frame_seconds: float | None = None
        self._scheduler = scheduler
        self._runner = runner
        self._device = device
        self._steps: deque[_Step] = deque()
        self._delivered = False

    @property
    def on_their_way(self) -> int:
        """Steps whose numbers nobody has looked at."""
        return len(self._steps)

    def settle(self, run: Run) -> list[StreamState]:
        """Every stream gets what was computed for it; those that went on.

        All that can fail for a stream is tried before anything of it changes: no stream moves on by half.
        """
        for state, error in run.failed:
            self._fail(state, wrapped(error))
        step = _Step([(o, [s.feeder.ticks_total for s, _ in o.work]) for o in run.outcomes], deque())
        if not self._runner.delay:
            self._fail_struck(step)
        moved: list[StreamState] = []
        self.passes += max((outcome.passes for outcome in run.outcomes), default=1)
        for outcome in run.outcomes:
            self.cells += outcome.cells
            self.updates += outcome.updates * outcome.passes
            for state, feed, latents, history in outcome.parts():
                if state.over:
                    continue
                try:
                    due, new = self._runner.tried_again(partial(state.settled, feed, latents))
                    clean = [(frame, new[frame], new[frame].clone()) for frame in due]
                except Exception as error:
                    self._fail(state, wrapped(error))
                    continue
                state.move(feed, outcome.passes, due, new, history)
                state.under_way += 1
                state.outbox.frames_under_way += len(clean)
                step.deliveries.append((state, clean))
                moved.append(state)
        self._steps.append(step)
        self.deliver(self._runner.delay)
        return moved

    def deliver(self, on_their_way: int = 0) -> None:
        """Hand frames to their readers, of all steps but the last `on_their_way`; waits for those steps."""
        while len(self._steps) > on_their_way:
            step = self._steps[0]
            if self._runner.delay:
                self._fail_struck(step)
            # One by one: what breaks off a decoder must not lose the others' frames.
            while step.deliveries:
                self._deliver(*step.deliveries.popleft())
            self._steps.popleft()

    def _deliver(self, state: StreamState, clean: Clean) -> None:
        state.under_way -= 1
        if state.over:
            return
        pictures: list[tuple[Picture, ...]] = [()] * len(clean)
        if state.decoder is not None and clean:
            seen = state.latents if state.outbox.kept is None else None
            frames = [(frame, own) for frame, own, _ in clean]
            try:
                pictures = self._runner.tried_again(partial(state.decoder.decode, frames, seen))
            except Exception as error:
                self._fail(state, wrapped(error))
                return
            except BaseException as error:
                self._fail(state, broken_off(error))
                raise
        state.outbox.deliver(clean, pictures)
        self._delivered = True
        self.frames += len(clean)
        if clean and self.first_frame_seconds is None:
            self.first_frame_seconds = state.outbox.first_frame_seconds

    def finish(self) -> bool:
        """End videos whose last frames were delivered; whether anything was delivered at all."""
        delivered, self._delivered = self._delivered, False
        # Of all streams: one that was forked off in the callback of a last pass has had no delivery itself.
        for state in list(self._scheduler.streams.values()):
            if state.over or not state.feeder.done or state.under_way:
                continue
            if state.then is None:
                self._scheduler.end(state, "finished")
                continue
            try:
                state.start_extension()
            except Exception as error:
                self._fail(state, wrapped(error))
        return delivered

    def _fail(self, state: StreamState, error: ArdiffError) -> None:
        self._scheduler.end(state, "failed", error)

    def _fail_struck(self, step: _Step) -> None:
        """Streams with a number that is not finite fail; all of them, if a kernel was given ids that do not
        exist, since nobody can tell whose they were. Waits for the passes."""
        for outcome, ticks in step.outcomes:
            if outcome.sound:
                continue
            for number, findings in enumerate(outcome.findings):
                if good(findings):
                    continue
                finite, *found = findings.wait()
                if found and int(found[0]):
                    self._fail_all(outcome)
                rows = finite.split([len(feed.first.updated) for _, feed in outcome.work])
                for (state, feed), tick, row in zip(outcome.work, ticks, rows, strict=True):
                    bad = list(compress(feed.updated, (~row).tolist()))
                    if bad:
                        self._fail(state, _not_finite(bad[0], tick + number))

    def _fail_all(self, outcome: Outcome) -> None:
        try:
            with own_words(self._runner.error_words):
                check_device(self._device)
        except ArdiffError as error:
            for state, _ in outcome.work:
                self._fail(state, error)


def _not_finite(frame: int, tick: int) -> NumericalError:
    return NumericalError(
        explain(
            f"latents of frame {frame} at tick {tick}",
            got="NaN or infinity",
            expected="finite numbers",
            fix="Check the weights and the condition.",
        )
    )
