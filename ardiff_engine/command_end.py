# SPDX-License-Identifier: Apache-2.0
"""How a command ends: with its exit code, and after an error with one line that says what is wrong.

0 done. 1 the work failed on its way: a full disk, no memory, a reader of the output that is gone, a fault of
ours. 2 what was asked cannot be done. 130 stopped by SIGINT (Ctrl-C), 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from ardiff_engine.errors import ArdiffError, Stopped

EXIT_FAILED = 1
EXIT_MISTAKE = 2
STOPPED = 128
"""Plus the number of the signal."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What the system says where nothing was wrong with the request.
NO_FAULT_OF_THE_USER = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
AGAIN = 0.5
"""Seconds after which an interrupt that was lost, or came during an import, comes again."""
LONGEST = 2000
OURS = "This is a fault of ardiff-engine. Please report it with what --debug shows for this command: "


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, calls `options.run(options)` and returns the exit code.

    The parser has the defaults `run` and `debug`; with `debug` an error shows its traceback. Both signals
    raise KeyboardInterrupt in the command, so that files are closed and removed as by Ctrl-C. As argparse
    does, `--help` and unknown arguments end in SystemExit.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = False
    with _stopped_by_signals() as received, _above_the_bar(parser.prog):
        try:
            try:
                options = parser.parse_args(arguments)
            finally:
                sys.stdout.flush()  # what --help has printed
            debug = options.debug
            code: int = options.run(options)
            sys.stdout.flush()
            # A command for which Ctrl-C is the normal end has returned; to SIGTERM the answer is 143.
            return STOPPED + signal.SIGTERM if signal.SIGTERM in received else code
        except SystemExit:
            raise
        except BaseException as error:
            # Libraries turn an interrupt into errors of their own, such as a damaged file.
            if not received and isinstance(error, KeyboardInterrupt):
                number = error.signal if isinstance(error, Stopped) else signal.SIGINT
                received.append(signal.Signals(number))
            code, text = (STOPPED + received[-1], _stopped(error)) if received else explained(error)
            if text.endswith(OURS):
                text += shlex.join([parser.prog, *arguments])
            _tell(parser.prog, text, error if debug else None)
            return code


def console(main: Callable[[], int]) -> int:
    """`main` as the only thing that this process does."""
    for number in SIGNALS:
        # Before and after `run` no file is open: nothing is to be closed or told.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: os._exit(STOPPED + number))
    for descriptor in (0, 1, 2):
        # A file that is opened where one of these should be would get what is meant for the terminal.
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding has not.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return main()
    except KeyboardInterrupt as error:  # while `run` was reporting or leaving
        return STOPPED + (error.signal if isinstance(error, Stopped) else signal.SIGINT)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # Python itself takes a while to end
        try:
            sys.stdout.flush()
        except OSError:
            # Python would try again, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def at_once(code: int) -> NoReturn:
    """Ends one process of several, as `torchrun` starts them, after what it has registered with `atexit`.

    The end of the interpreter is left out: threads of PyTorch's process groups may outlive it, and one that
    still lets go of a tensor then aborts the process, whatever its work has come to.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def explained(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    cause = error.__cause__
    if isinstance(error, ArdiffError):
        if type(error) is ArdiffError and cause is not None:
            return explained(cause)  # only a wrapper, see errors.wrapped
        refused = isinstance(cause, OSError) and cause.errno in NO_FAULT_OF_THE_USER
        return (EXIT_FAILED if refused or isinstance(cause, MemoryError) else EXIT_MISTAKE), str(error)
    if isinstance(error, BrokenPipeError):
        return EXIT_FAILED, ""
    if isinstance(error, OSError):
        name = "" if error.filename is None else f": {os.fsdecode(error.filename)!r}"
        code = EXIT_FAILED if error.errno in NO_FAULT_OF_THE_USER or not name else EXIT_MISTAKE
        return code, f"{error.strerror or error}{name}"
    if isinstance(error, MemoryError) or _of_memory(error):
        return EXIT_FAILED, f"not enough memory: {error or 'none left'}"
    return EXIT_FAILED, f"{type(error).__name__}: {error}. {OURS}"


def _of_memory(error: BaseException) -> bool:
    """Whether PyTorch has found no memory; on the CPU it has no class for that."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _stopped(error: BaseException) -> str:
    """What the command said itself, or the plain fact."""
    return str(error) if isinstance(error, KeyboardInterrupt) and error.args else "stopped"


def _tell(program: str, text: str, shown: BaseException | None) -> None:
    with contextlib.suppress(OSError):
        if shown is not None:
            traceback.print_exception(shown)
        if text:
            print(f"{program}: {_line(text)}", file=sys.stderr, flush=True)


def _line(text: str) -> str:
    """Names of files may hold anything, also what a terminal takes for commands."""
    line = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


@contextlib.contextmanager
def _above_the_bar(program: str) -> Iterator[None]:
    """Warnings and log entries become lines of their own, which a progress bar makes room for."""

    def write(text: str) -> None:
        from tqdm import tqdm

        with contextlib.suppress(OSError):
            tqdm.write(f"{program}: {_line(text)}", file=sys.stderr)

    class Entries(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write(record.getMessage())
            if record.exc_info:  # a fault of ours: whoever mends it needs to know where
                found = "".join(traceback.format_exception(*record.exc_info))
                sys.stderr.write(found)

    logger, entries = logging.getLogger("ardiff_engine"), Entries()
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: write(f"warning: {message}")
    logger.addHandler(entries)
    try:
        yield
    finally:
        logger.removeHandler(entries)
        warnings.showwarning = shown


def _in_import(frame: FrameType | None) -> bool:
    """Whether a module is being imported inside `run`. C++ that imports one, as PyTorch does while it starts,
    aborts the process when it gets an interrupt."""
    while frame is not None and frame.f_code is not run.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[list[signal.Signals]]:
    """Inside, both signals raise KeyboardInterrupt; the list tells which came."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        if not _in_import(frame):
            raise Stopped("stopped", number)

    def again(_number: int, frame: FrameType | None) -> None:
        # Finalizers and C code can lose an interrupt, and the command would go on. While one is on its way,
        # files are being closed, which must not be disturbed.
        error = sys.exc_info()[1]
        while error is not None and not isinstance(error, KeyboardInterrupt):
            error = error.__context__
        if error is None and not _in_import(frame):
            raise Stopped("stopped", received[-1])

    def unraisable(found: sys.UnraisableHookArgs) -> None:
        if not (received and issubclass(found.exc_type, KeyboardInterrupt)):
            hook(found)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    # Where a shell has it ignored (nohup, background jobs) it stays so.
    before = {n: handler for n in SIGNALS if (handler := signal.getsignal(n)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, again) or signal.SIG_DFL
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
