# SPDX-License-Identifier: Apache-2.0
"""PyTorch's split tensors are imported by sharded runs alone; means of a step weigh every clip alike."""

from __future__ import annotations

import importlib
import subprocess
import sys

import torch

from ardiff_engine.training.averages import Averages
from ardiff_engine.training.split_tensors import has_split, is_split

HEAVY = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint")


def test_training_imports_no_split_tensors() -> None:
    code = f"import sys, ardiff_engine.training; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_whole_tensors_are_not_split() -> None:
    importlib.import_module(HEAVY[0])
    assert not is_split(torch.zeros(2)) and not has_split(torch.nn.Linear(2, 2))


def test_means_of_several_steps_weigh_clips_not_steps() -> None:
    whole, one, two = Averages(), Averages(), Averages()
    one.add("loss", 3.0, 1)
    two.add("loss", 3.0, 3)
    whole.add_all(one)
    whole.add_all(two, "")
    whole.add_all(two, "fake_")
    assert dict(whole) == {"loss": 1.5, "fake_loss": 1.0}
