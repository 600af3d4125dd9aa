# SPDX-License-Identifier: Apache-2.0
"""The loop around a training step, shared by both stages: progress, log, validation, checkpoints, signals,
resume."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ardiff_engine.errors import CheckpointError, ConfigError, Stopped, explain
from ardiff_engine.files import remove_leftovers
from ardiff_engine.parsing import parsing
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.checkpoint import Checkpoint, checkpoints, newest_checkpoint, save_checkpoint
from ardiff_engine.training.checkpoint_parts import in_parts
from ardiff_engine.training.config import RunConfig
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.log import TrainingLog
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.loss_curve import draw_loss_curve
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.processes import largest, rank, together, world_size
from ardiff_engine.training.progress import Progress
from ardiff_engine.training.read_config import to_dict, with_defaults
from ardiff_engine.training.split_tensors import has_split
from ardiff_engine.training.tensorboard import FOLDER, TensorBoard, check_tensorboard
from ardiff_engine.training.throughput import Throughput

LOG_FILE = "training_log.jsonl"
CURVE_FILE = "loss_curve.png"
CHECKPOINT_FOLDER = "checkpoints"
BEST_FOLDER = "best"

logger = logging.getLogger(__name__)

Metrics = Mapping[str, float]
T = TypeVar("T")


class TrainingLoop:
    """Runs `step(n)` for n = 0 .. steps - 1 and keeps everything that a resumed process needs.

    Args:
        run: where, how long, how often.
        modules, optimizers: saved and restored by name. ema: average of modules["model"], or None.
        config: the whole one. Resuming under other settings than the checkpoint's is an error. Of `run` that
            holds for the seed and for the clips per step, batch x accumulate x processes: with others, clips
            and noise would come again. A setting that is younger than the checkpoint had its default.

    The state after step n is a function of the settings alone: steps draw by counters, so a resumed run
    continues bit for bit (on CPUs; GPUs to the extent that their kernels are deterministic).
    """

    def __init__(
        self,
        run: RunConfig,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        ema: Ema | None,
        config: Any,
    ) -> None:
        if run.shard and not any(has_split(module) for module in modules.values()):
            raise ConfigError("run.shard: got true for stage 1, whose models are small. Drop it.")
        self.run_config = run
        self.log_config: LogConfig = config.log
        if self.log_config.keep_best and not run.validate_every:
            raise ConfigError(
                "log.keep_best: got true and run.validate_every 0, expected steps between validations: the "
                "best weights are those of the lowest validation loss. Set one, or drop keep_best."
            )
        if self.log_config.tensorboard:
            check_tensorboard()
        self.board: TensorBoard | None = None
        self.modules = modules
        self.optimizers = optimizers
        self.ema = ema
        self.config = config
        self.folder = Path(run.output)
        self.finished = 0
        self.averages = Averages()

    def run(
        self,
        step: Callable[[int], Averages],
        validate: Callable[[], Metrics] | None = None,
        *,
        passes: Callable[[], None] | None = None,
        sample: Callable[[], None] | None = None,
        best: Callable[[], None] | None = None,
        resume: bool = False,
    ) -> None:
        """All steps that are left. passes: what a step computes, and nothing else, for `log.gemm_share`.
        sample: shows the model's videos. best: keeps the averaged weights, which have the lowest validation
        loss so far.

        Raises:
            Stopped: by SIGINT or SIGTERM, with a checkpoint on the disk.
            CheckpointError: the disk refuses; on all processes, also where it refuses one of them only.
        """
        run = self.run_config
        log = together(lambda: self._start(resume), run.device)
        with (
            _stop_signals() as stopped,
            Progress(run.steps, self.finished, shown=rank() == 0) as progress,
        ):
            throughput = Throughput(run)
            if passes is not None and self.log_config.gemm_share:
                throughput.counted(passes)
            began, since = time.perf_counter(), self.finished
            while self.finished < run.steps:
                self.averages.add_all(step(self.finished))
                if self.ema is not None:
                    self.ema.update(self.modules["model"])
                self.finished += 1
                progress.step()
                if _due(self.finished, run.log_every, run.steps):
                    metrics = self._means()
                    speed = throughput.metrics(self.finished - since, time.perf_counter() - began)
                    self._note(log, {**metrics, **speed})
                    progress.losses(metrics)
                if validate is not None and _due(self.finished, run.validate_every, run.steps):
                    found = self._validate(validate, log)
                    lowest = best is not None and bool(largest(self._is_best(log), run.device))
                    if best is not None and lowest:
                        self._averaged(best)
                    progress.validation(found, kept=lowest)
                if sample is not None and _due(self.finished, self.log_config.samples_every, run.steps):
                    self._averaged(sample)
                number = int(largest(stopped[-1] if stopped else 0, run.device))
                if number or _due(self.finished, run.checkpoint_every, run.steps):
                    self.averages.gather()
                    together(lambda: self._save(log), run.device)
                if number and self.finished < run.steps:
                    done = f"stopped at step {self.finished} of {run.steps}; go on with --resume"
                    raise Stopped(done, number)

    def _means(self) -> dict[str, float]:
        """Of all steps since the last line of the log and of all processes, on the first one."""
        self.averages.gather()
        means, self.averages = self.averages, Averages()
        lr = next(iter(self.optimizers.values())).lr(self.finished - 1)
        return {**means, "lr": lr}

    def _validate(self, validate: Callable[[], Metrics], log: TrainingLog | None) -> Metrics:
        metrics = self._averaged(validate)
        self._note(log, {f"validation_{key}": value for key, value in metrics.items()})
        return metrics

    def _is_best(self, log: TrainingLog | None) -> int:
        """Whether the last validation is, for the process that has the log; or the first one that is kept."""
        losses = [] if log is None else [e["validation_loss"] for e in log.entries if "validation_loss" in e]
        finite = [loss for loss in losses if math.isfinite(loss)]
        if not finite or not math.isfinite(losses[-1]):
            return 0
        return int(losses[-1] == min(finite) or not (self.folder / BEST_FOLDER).exists())

    def _averaged(self, action: Callable[[], T]) -> T:
        """With averaged weights where there are any."""
        model = self.modules["model"]
        if self.ema is not None:
            self.ema.exchange(model)
        try:
            with torch.no_grad():
                return action()
        finally:
            if self.ema is not None:
                self.ema.exchange(model)

    def _note(self, log: TrainingLog | None, metrics: Metrics) -> None:
        def add() -> None:
            if log is not None:
                log.add(self.finished, **metrics)
            if self.board is not None:
                self.board.add(self.finished, metrics)

        together(add, self.run_config.device)

    def _start(self, resume: bool) -> TrainingLog | None:
        """Continues from the newest checkpoint, if asked to. The log, for the process that keeps it."""
        folder = self.folder / CHECKPOINT_FOLDER
        found = None
        if resume:
            found = newest_checkpoint(folder)
        elif existing := checkpoints(folder):
            raise ConfigError(
                explain(
                    "run.output",
                    got=f"{self.folder}, which holds a run with {existing[-1].name}",
                    expected="an empty folder, or a resumed run",
                    fix="Pass --resume, or choose or empty the folder.",
                )
            )
        if found is not None:
            self._restore(found)
        if rank():
            return None
        remove_leftovers(folder)
        if self.log_config.tensorboard:
            self.board = TensorBoard(self.folder / FOLDER, self.finished)
        return TrainingLog(self.folder / LOG_FILE, self.finished if resume else None)

    def _restore(self, found: Checkpoint) -> None:
        if found.step > self.run_config.steps:
            raise ConfigError(f"run.steps: got {self.run_config.steps}, and {found.path} has more. Raise it.")
        with parsing(found.path):
            known = with_defaults(self.config, found.state["settings"])
            saved = _fixed(known, found.state["processes"])
            stretched = found.state["settings"]["run"]["steps"] != self.run_config.steps
        settings = _fixed(to_dict(self.config), world_size())
        for key, value in saved.items():
            if value != settings.get(key):
                raise CheckpointError(
                    explain(
                        f"resuming under other settings ({key})",
                        got=settings.get(key),
                        expected=value,
                        fix="Restore them, or start a new run with `init` set to this one's weights.",
                    )
                )
        for name, optimizer in self.optimizers.items():
            optimizer.begin(found.names(f"{name}_optimizer"))
        found.restore(self._tensors())
        with parsing(found.path, fix="It belongs to another run."):
            if self.ema is not None:
                self.ema.updates = found.state["ema_updates"]
            for name, (total, count) in found.state["averages"].items() if rank() == 0 else ():
                self.averages.add(name, total, count)
        self.finished = found.step
        if stretched and self.config.optimizer.schedule != "constant":
            logger.warning(
                "run.steps has changed: the learning rate is now that of a schedule over %d steps, from step "
                "%d on.",
                self.run_config.steps,
                found.step,
            )

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """All that a checkpoint holds, by its names."""
        tensors: dict[str, Mapping[str, Tensor]]
        tensors = {name: module.state_dict() for name, module in self.modules.items()}
        tensors |= {f"{name}_optimizer": optimizer.tensors() for name, optimizer in self.optimizers.items()}
        return tensors if self.ema is None else tensors | {"ema": self.ema.shadow}

    def _save(self, log: TrainingLog | None) -> None:
        tensors = self._tensors()
        if log is None and not in_parts(tensors):
            return
        state = {
            "settings": _plain(to_dict(self.config)),
            "processes": world_size(),
            "averages": self.averages.sums,
            "ema_updates": 0 if self.ema is None else self.ema.updates,
        }
        save_checkpoint(self.folder / CHECKPOINT_FOLDER, self.finished, tensors, state, self.run_config.keep)
        if log is not None:
            draw_loss_curve(log.entries, self.folder / CURVE_FILE)


def begun(run: RunConfig) -> bool:
    """Whether the run's folder has a checkpoint. Such a run is resumed or refused, so what it began with
    (`init`) is not read again, and need not be there any more."""
    return bool(checkpoints(Path(run.output) / CHECKPOINT_FOLDER))


@contextmanager
def exported_at_the_end(export: Callable[[], None]) -> Iterator[None]:
    """Calls `export`, on all processes, when the block ends, and when it was stopped by a signal."""
    stopped = None
    try:
        yield
    except Stopped as error:
        stopped = error
    export()
    if stopped is not None:
        raise stopped


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _fixed(settings: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """What may not change on resume: the settings beside `run` and `log`, and what sample ids follow from."""
    run = settings["run"]
    return {key: value for key, value in _plain(settings).items() if key not in ("run", "log")} | {
        "run.seed": run["seed"],
        "run.batch x run.accumulate x processes": run["batch"] * run["accumulate"] * processes,
    }


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The numbers of the signals that came, SIGINT or SIGTERM; a second one acts as usual. Handlers are put
    back at the end, and a signal that is ignored (nohup, background jobs) stays so."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    both = (signal.SIGINT, signal.SIGTERM)
    before = {n: handler for n in both if (handler := signal.getsignal(n)) != signal.SIG_IGN}

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
