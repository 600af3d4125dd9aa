# SPDX-License-Identifier: Apache-2.0
"""Captions as bytes, numbered as ByT5 does; any text that is short enough can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ardiff_engine.conditions.captions import CaptionEncoder, CaptionEncoderConfig
from ardiff_engine.errors import ConfigError
from ardiff_engine.weights import load_model, save_model

TEXTS = ["a red circle moves left", "déjà vu ✓", "\x00\n", "x"]


def encoder(tokens: int = 32) -> CaptionEncoder:
    torch.manual_seed(0)
    return CaptionEncoder(CaptionEncoderConfig(tokens=tokens, width=16)).eval()


def test_numbers_are_those_of_byt5() -> None:
    tokenizer = pytest.importorskip("transformers").ByT5Tokenizer()
    expected = tokenizer(TEXTS, padding="max_length", max_length=32)["input_ids"]
    assert encoder().ids(TEXTS).tolist() == expected


def test_a_caption_is_read_alike_beside_any_other_and_says_its_words() -> None:
    model = encoder()
    among, alone = model.encode(TEXTS), model.encode(TEXTS[:1])
    assert torch.allclose(among[:1], alone, atol=1e-6)
    assert among.shape == (4, 32, 16)
    for row, text in zip(among, TEXTS, strict=True):
        used = len(text.encode()) + 1
        assert (row[used:] == 0).all() and (row[:used].abs().sum(1) > 0).all()
    longer = CaptionEncoder(CaptionEncoderConfig(tokens=48, width=16)).eval()
    weights = model.state_dict()
    weights["places.weight"] = torch.cat([weights["places.weight"], torch.ones(16, 16)])
    longer.load_state_dict(weights)
    assert torch.allclose(longer.encode(TEXTS)[:, :32], among, atol=1e-6), "padding does not show"
    other = model.encode(["a red square moves left"])
    assert (other - alone).abs().max() > 0.1


def test_a_caption_may_be_read_by_words() -> None:
    torch.manual_seed(0)
    model = CaptionEncoder(CaptionEncoderConfig(tokens=32, width=16, words=6)).eval()
    texts = ["a red circle moves left", "two  blanks", " ", "déjà"]
    rows = model.encode(texts)
    assert rows.shape == (4, 6, 16) and torch.isfinite(rows).all()
    given = (rows.abs().sum(2) > 0).tolist()
    assert given[0] == [True] * 5 + [False] and given[1] == [True, False, True, False, False, False]
    assert sum(given[2]) == 1 and given[3] == [True] + [False] * 5
    assert torch.allclose(model.encode(texts[:1]), rows[:1], atol=1e-6), "read alike beside any other"
    assert model.config.rows == 6 and (model.encode([""]) == 0).all()
    with pytest.raises(ConfigError, match="words"):
        model.encode(["a b c d e f g"])
    with pytest.raises(ConfigError, match="words"):
        CaptionEncoderConfig(tokens=4, words=5)


def test_an_empty_caption_says_nothing() -> None:
    assert (encoder().encode(["", "a"])[0] == 0).all()


@pytest.mark.parametrize("captions", ["a red circle", ["x" * 10_000], ["é" * 16], [3], [None]])
def test_what_is_no_list_of_short_texts(captions: object) -> None:
    with pytest.raises(ConfigError, match="caption"):
        encoder().encode(captions)  # type: ignore[arg-type]


def test_it_comes_back_from_a_folder(tmp_path: Path) -> None:
    model = encoder()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, CaptionEncoder) and torch.equal(again.encode(TEXTS), model.encode(TEXTS))
    with pytest.raises(ConfigError, match="tokens"):
        CaptionEncoderConfig(tokens=0)
