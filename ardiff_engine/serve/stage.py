# SPDX-License-Identifier: Apache-2.0
"""Decoding and encoding in a process of their own, so that neither ever delays a pass of the engine."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ardiff_engine.codec.protocol import Codec
from ardiff_engine.errors import ArdiffError
from ardiff_engine.serve.film import Film, Form, Piece


class Stage:
    """Any thread may call it; calls are answered in their order. Films are known by the name of their stream.

    If the process dies, what was in it fails, and a new one takes the next films.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._caller = ThreadPoolExecutor(1, "ardiff-serve-stage")
        self._start()

    def close(self) -> None:
        self._caller.shutdown(cancel_futures=True)
        self._end()

    def open(self, name: str, form: Form) -> Future[None]:
        return self._called("open", name, form)

    def push(
        self, name: str, index: int, latent: torch.Tensor, seen: Container[int] | None, shown: bool = True
    ) -> Future[Piece]:
        """As `Film.push`."""
        return self._called("push", name, index, latent, seen, shown)

    def rollback(self, name: str, frame: int) -> Future[None]:
        return self._called("rollback", name, frame)

    def fork(self, name: str, other: str) -> Future[None]:
        return self._called("fork", name, other)

    def finish(self, name: str) -> Future[bytes]:
        """As `Film.close`; the film is gone then."""
        return self._called("finish", name)

    def drop(self, name: str) -> Future[None]:
        """The film is gone, if it was there; a file that it wrote is closed."""
        return self._called("drop", name)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), name="ardiff-serve-stage", daemon=True)
        self._process.start()
        theirs.close()
        # Else a program that ends without `close` waits for it for ever: multiprocessing sends SIGTERM.
        atexit.register(self._pipe.close)
        self._pipe.send_bytes(pickle.dumps((torch.get_num_threads(), self._codec)))

    def _end(self) -> int | None:
        """The exit code."""
        atexit.unregister(self._pipe.close)
        self._pipe.close()
        self._process.join()
        return self._process.exitcode

    def _called(self, act: str, *arguments: Any) -> Future[Any]:
        return self._caller.submit(self._call, act, arguments)

    def _call(self, act: str, arguments: tuple[Any, ...]) -> Any:
        sent = [_Sent(item) if isinstance(item, torch.Tensor) else item for item in arguments]
        try:
            self._pipe.send_bytes(pickle.dumps((act, sent), protocol=5))
            good, answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            code = self._end()
            self._start()
            raise ArdiffError(f"the process that decodes has ended with code {code}") from error
        if not good:
            raise answer
        return answer


class _Sent:
    """A tensor on its way. It is pickled as its bytes: as PyTorch does it, through an archive of storages, it
    would take ten times as long, on both sides."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
        plain = self._tensor.detach().cpu().contiguous()
        return _received, (plain.view(torch.uint8).numpy(), plain.dtype)


def _received(rows: NDArray[np.uint8], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rows).view(dtype)


class _Films:
    """All of them, in the process that makes them."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._films: dict[str, Film] = {}

    def open(self, name: str, form: Form) -> None:
        self._films[name] = Film(self._codec, form)

    def push(self, name: str, *frame: Any) -> Piece:
        return self._films[name].push(*frame)

    def rollback(self, name: str, frame: int) -> None:
        self._films[name].rollback(frame)

    def fork(self, name: str, other: str) -> None:
        self._films[other] = self._films[name].fork()

    def finish(self, name: str) -> bytes:
        rest = self._films.pop(name).close()
        _give_back()
        return rest

    def drop(self, name: str) -> None:
        if name in self._films:
            self._films.pop(name).close()
            _give_back()


def _give_back() -> None:
    """What a film has freed, to the system: encoders are large and live long beside each other, so that the C
    library would keep nearly as much as the most of them that ever ran together."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _work(pipe: Connection) -> None:
    """Until the other side has gone, however it went. A signal is for the server, whose videos may still
    finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        threads, codec = pickle.loads(pipe.recv_bytes())
        torch.set_num_threads(threads)
        films = _Films(codec)
        while True:
            act, arguments = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(_answer(films, act, arguments))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """At once, also in the middle of a frame: the next server may already put the folder in order."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(films: _Films, act: str, arguments: list[Any]) -> bytes:
    """(True, what it returns) or (False, its error), pickled."""
    try:
        return pickle.dumps((True, getattr(films, act)(*arguments)))
    except Exception as error:
        # Not every error can be sent on, and only ours say anything to a client.
        known = isinstance(error, ArdiffError)
        return pickle.dumps((False, type(error)(str(error)) if known else ArdiffError(repr(error))))
