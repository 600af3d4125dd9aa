# SPDX-License-Identifier: Apache-2.0
"""Text prompts: official numbers, folders as diffusers write them, prompts that do not know each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import recipe_tensor

from ardiff_engine.conditions import UMT5, cleaned
from ardiff_engine.errors import CheckpointError, ConfigError

transformers = pytest.importorskip("transformers")
GOLDEN = np.load(Path(__file__).parent / "golden" / "wan" / "umt5.npz")
WORDS = [
    "</s>",
    "<pad>",
    "<unk>",
    "a",
    "red",
    "cat",
    "walks",
    "on",
    "the",
    "beach",
    "blue",
    "dog",
    "&",
    "sea",
]


def encoder(words: int, width: int = 16, layers: int = 2):
    torch.manual_seed(0)
    config = transformers.UMT5Config(
        vocab_size=words, d_model=width, d_kv=8, d_ff=32, num_layers=layers, num_heads=2, dropout_rate=0.0
    )
    return transformers.UMT5EncoderModel(config).eval()


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As diffusers write the text parts of a Wan pipeline, with a tokenizer of fourteen words."""
    root = tmp_path_factory.mktemp("wan")
    encoder(len(WORDS)).save_pretrained(root / "text_encoder")
    tokenizer().save_pretrained(root / "tokenizer")
    return root


def test_official_numbers() -> None:
    """The recorded ids go through our own path: one prompt at a time, unpadded, zeros behind."""
    config = json.loads(str(GOLDEN["config"]))
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config["vocab"],
            d_model=config["dim"],
            d_kv=config["dim"] // config["num_heads"],
            d_ff=config["dim_ffn"],
            num_layers=config["num_layers"],
            num_heads=config["num_heads"],
            relative_attention_num_buckets=config["num_buckets"],
            relative_attention_max_distance=config["max_distance"],
        )
    )
    state = model.state_dict()
    pairs = zip(GOLDEN["official_keys"], GOLDEN["official_to_transformers"], strict=True)
    loaded = {
        str(theirs): recipe_tensor(str(ours), tuple(state[str(theirs)].shape)) for ours, theirs in pairs
    }
    missing = model.load_state_dict(loaded, strict=False)
    assert not missing.unexpected_keys and missing.missing_keys in ([], ["encoder.embed_tokens.weight"])
    ids, mask = GOLDEN["ids"], GOLDEN["mask"].astype(bool)

    class Recorded:
        def __call__(self, text: str, **options: object):
            row = int(text)
            return transformers.BatchEncoding({"input_ids": ids[row][mask[row]].tolist()})

    text = UMT5(model, Recorded(), tokens=ids.shape[1])
    want = torch.from_numpy(GOLDEN["embeds"])
    got = text.encode([str(row) for row in range(len(ids))])
    assert float((got - want).norm() / want.norm()) <= 1e-5
    assert not got[torch.from_numpy(~mask)].any()


def test_a_prompt_does_not_know_what_is_encoded_beside_it(folder: Path) -> None:
    prompts = ["a red cat walks on the beach", "blue dog", "", "the sea & the beach"]
    together = UMT5.from_pretrained(folder, tokens=12).encode(prompts)
    assert together.shape == (4, 12, 16)
    for prompt, embedding in zip(prompts, together, strict=True):
        assert torch.equal(UMT5.from_pretrained(folder, tokens=12).encode([prompt])[0], embedding)
    # The end token of the empty prompt is a row too.
    assert together[2, 0].any() and not together[2, 1:].any()
    padded = encoder(len(WORDS))(
        input_ids=torch.tensor([[10, 11, 0] + [1] * 9]), attention_mask=torch.tensor([[1, 1, 1] + [0] * 9])
    )
    torch.testing.assert_close(together[1, :3], padded.last_hidden_state[0, :3], rtol=1e-5, atol=1e-6)


def test_prompts_are_remembered_when_the_encoder_is_gone(folder: Path) -> None:
    text = UMT5.from_pretrained(folder, tokens=8)
    first = text.encode(["red cat", "red  cat "])
    assert torch.equal(first[0], first[1])  # one prompt, once cleaned
    text.unload()
    assert torch.equal(text.encode(["red cat"]), first[:1])
    with pytest.raises(ConfigError, match="unloaded"):
        text.encode(["blue dog"])


def test_a_long_prompt_is_cut_aloud(folder: Path) -> None:
    text = UMT5.from_pretrained(folder, tokens=4)
    with pytest.warns(UserWarning, match="walks on"):
        long = text.encode(["a red cat walks on"])
    assert torch.equal(long, text.encode(["a red cat"]))


def test_cleaning() -> None:
    assert cleaned("  a \n\t b  ") == "a b"
    assert cleaned("Caf&amp;eacute; &lt;x&gt;") == "Café <x>"
    assert cleaned("schÃ¶n") == "schön"
    assert cleaned("A Cat") == "A Cat"


def test_mixing() -> None:
    first, second = torch.zeros(3, 2), torch.ones(3, 2)
    assert torch.equal(UMT5.mix(first, second, 0.25), torch.full((3, 2), 0.25))


def test_what_is_no_text_encoder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text("{")
    for place in (tmp_path / "nowhere", tmp_path, folder / "tokenizer"):
        with pytest.raises(CheckpointError):
            UMT5.from_pretrained(place)
    text = UMT5.from_pretrained(folder)
    for prompts in ("a cat", [], [3]):
        with pytest.raises(ConfigError):
            text.encode(prompts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        UMT5.from_pretrained(folder, tokens=1)
