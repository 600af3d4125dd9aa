# SPDX-License-Identifier: Apache-2.0
"""The word in which the kernels of a device leave what they found wrong: who makes it, who reads it when."""

from __future__ import annotations

import pytest
import torch

from ardiff_engine.errors import KernelError, PageTableError
from ardiff_engine.ops import cuda_launch
from ardiff_engine.ops.cuda_launch import check_device, error_bits, own_words

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BAD_SLOT = 2  # csrc/include/ardiff/device_error.h


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, torch.Tensor]:
    """As in a new process: no device has a word."""
    words: dict[torch.device, torch.Tensor] = {}
    monkeypatch.setattr(cuda_launch, "_ERROR_WORDS", words)
    return words


def test_a_finding_is_raised_once(words):
    error_bits(CPU).fill_(BAD_SLOT)
    assert error_bits(CPU) is words[CPU], "graphs hold its address"
    with pytest.raises(PageTableError, match="slot"):
        check_device("cpu")
    check_device("cpu")


def test_an_owner_answers_for_its_own_kernels_alone(words):
    own: dict[torch.device, torch.Tensor] = {}
    with own_words(own):
        error_bits(CPU).fill_(BAD_SLOT)
    check_device("cpu")
    with own_words(own), pytest.raises(PageTableError):
        check_device("cpu")
    with own_words(own):
        check_device("cpu")
    assert not words[CPU].any() and not own[CPU].any() and words[CPU] is not own[CPU]


def test_a_word_made_in_inference_mode_can_be_cleared_outside_of_it(words):
    with torch.inference_mode():
        bits = error_bits(CPU)
    bits.fill_(BAD_SLOT)
    with pytest.raises(PageTableError):
        check_device("cpu")
    with torch.inference_mode():
        check_device("cpu")


def test_the_first_kernel_of_a_process_is_not_one_of_a_graph(words, monkeypatch):
    """The zeros of its word would be recorded, not written; and the word kept."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(KernelError, match="capture"):
        error_bits(GPU)
    assert not words
    words[GPU] = torch.zeros(1, dtype=torch.int32)
    assert error_bits(GPU) is words[GPU]


def test_kernels_of_other_streams_have_run_when_the_word_is_read(words, monkeypatch):
    bits = words[GPU] = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: bits.fill_(BAD_SLOT))
    with pytest.raises(PageTableError):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    check_device("cuda")


def test_an_error_of_cuda_is_typed(words, monkeypatch):
    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    words[GPU] = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(KernelError, match="memory"):
        check_device(GPU)
