# SPDX-License-Identifier: Apache-2.0
"""Tensors that are split over processes, on the disk: each process writes its part of all of them into one
safetensors file (`torch.distributed.checkpoint`), and any number of processes reads what it needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from ardiff_engine.errors import CheckpointError
from ardiff_engine.parsing import parsing
from ardiff_engine.training.split_tensors import is_split

Groups = Mapping[str, Mapping[str, Tensor]]


def in_parts(tensors: Groups) -> bool:
    """Whether some of them are split."""
    return any(is_split(tensor) for group in tensors.values() for tensor in group.values())


def is_part(file: str) -> bool:
    return file.startswith("shard-")


def write_parts(folder: Path, tensors: Groups) -> None:
    """Called by all processes together. CheckpointError on all of them if one cannot write."""
    import torch.distributed.checkpoint as dcp

    with _quiet(), _typed(f"writing {folder}"):
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(_flat(tensors), storage_writer=writer)


def read_parts(folder: Path, live: Groups) -> None:
    """Into the tensors, in place. Called by all processes together."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    with _quiet(), _typed(f"reading {folder}"):
        dcp.load(_flat(live), storage_reader=reader, no_dist=not dist.is_initialized())


def names_in_parts(folder: Path, group: str) -> set[str]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    with parsing(folder):
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name.removeprefix(f"{group}/") for name in found if name.startswith(f"{group}/")}


def _flat(tensors: Groups) -> dict[str, Tensor]:
    return {f"{group}/{name}": value for group, own in tensors.items() for name, value in own.items()}


@contextmanager
def _typed(what: str) -> Iterator[None]:
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failure:
        raise CheckpointError(
            f"{what}: {'; '.join(str(each[0]) for each in failure.failures.values())}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch tells about its own insides."""
    quiet, before = logging.getLogger("torch.distributed.checkpoint"), logging.NOTSET
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        quiet.setLevel(before)
