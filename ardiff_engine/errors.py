# SPDX-License-Identifier: Apache-2.0
"""Every error that this package raises on purpose. All share the root `ArdiffError`.

A message says what is wrong, what was given, what was expected, and how to fix it; `explain` keeps that
shape the same everywhere. Each class also derives from the built-in error that a caller would expect, so
`except ValueError` keeps working for code that does not know this package.
"""

from __future__ import annotations


class ArdiffError(Exception):
    """Root of all errors raised by ardiff_engine."""


class ConfigError(ArdiffError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class PlanError(ConfigError):
    """A plan that breaks a rule: lag or steps out of range, a window that would drop unfinished frames."""


class ForgottenError(PlanError):
    """A frame that an endless stream no longer keeps."""


class TensorError(ArdiffError, ValueError):
    """A tensor argument with a wrong shape, dtype, device, stride or value."""


class PageTableError(ArdiffError, IndexError):
    """A page id, slot or row count outside the page pool."""


class OutOfPagesError(ArdiffError, MemoryError):
    """The page pool cannot hold what was asked for. Raised before anything is changed."""


class PoolTooSmallError(OutOfPagesError):
    """What was asked for is larger than the whole page pool, so that waiting does not help."""


class ProcessLostError(ArdiffError, ConnectionError):
    """Another of the processes that compute something together has ended, or does not answer."""


class OutOfMemoryError(ArdiffError, MemoryError):
    """Memory that something would need is not there; said before any of it is taken."""


class CheckpointError(ArdiffError, ValueError):
    """A weights file that is damaged, incomplete or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle-based weights file: it can run code when it is opened, so it must be converted first."""


class BackendNotAvailableError(ArdiffError, RuntimeError):
    """A backend was asked for by name and cannot be used here; the message says why."""


class KernelError(ArdiffError, RuntimeError):
    """A GPU kernel could not be launched, or found ids out of range; the message holds what CUDA said."""


class StreamClosedError(ArdiffError, RuntimeError):
    """A stream was used after it was cancelled or had failed."""


class StreamInterruptedError(ArdiffError, RuntimeError):
    """A pass that served the stream was broken off, by Ctrl-C or the end of the thread that ran it."""


class EngineBusyError(ArdiffError, RuntimeError):
    """The engine was asked to run a pass from within a pass."""


class NumericalError(ArdiffError, ArithmeticError):
    """NaN or infinity where finite numbers are required."""


class MediaError(ArdiffError, OSError):
    """A video or image file that cannot be read or written."""


class DataError(ArdiffError, ValueError):
    """A data set, clip or canvas description that cannot be used."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the work at a point from which it can go on; the message says how. It is no mistake,
    so no ArdiffError. `signal` is the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def explain(what: str, *, got: object, expected: object, fix: str) -> str:
    """The one form of all messages: what is wrong, what was given, what was expected, how to fix it."""
    return f"{what}: got {got}, expected {expected}. {fix}"


def wrapped(error: Exception) -> ArdiffError:
    """An error of ours as it is; anything else inside one of ours, so that callers need one root only."""
    if isinstance(error, ArdiffError):
        return error
    outer = ArdiffError(f"the stream was stopped by {type(error).__name__}: {error}")
    outer.__cause__ = error
    return outer
