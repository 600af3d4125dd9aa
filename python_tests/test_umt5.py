# SPDX-License-Identifier: Apache-2.0
"""Text prompts: official numbers, folders as diffusers write them, prompts that do not know each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.wan_folder import official_umt5
from official_keys import recipe_tensor
from safetensors.torch import load_file, save_file

from ardiff_engine.conditions import UMT5, cleaned
from ardiff_engine.conditions.umt5_file import OFFICIAL, UMT5File
from ardiff_engine.errors import CheckpointError, ConfigError, UnsafeCheckpointError
from ardiff_engine.weights import convert

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


def test_official_numbers(tmp_path: Path) -> None:
    """From a file as the official release has it, and one that transformers wrote. The recorded ids go
    through our own path: one prompt at a time, unpadded, zeros behind."""
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
    named = list(
        zip(GOLDEN["official_keys"].tolist(), GOLDEN["official_to_transformers"].tolist(), strict=True)
    )
    official = {ours: recipe_tensor(ours, tuple(state[theirs].shape)) for ours, theirs in named}
    model.load_state_dict({theirs: official[ours] for ours, theirs in named}, strict=False)
    ids, mask = GOLDEN["ids"], GOLDEN["mask"].astype(bool)

    class Recorded:
        def __call__(self, text: str, **options: object):
            row = int(text)
            return transformers.BatchEncoding({"input_ids": ids[row][mask[row]].tolist()})

    want = torch.from_numpy(GOLDEN["embeds"])
    torch.save(official, tmp_path / f"{OFFICIAL}.pth")
    convert(tmp_path / f"{OFFICIAL}.pth", tmp_path / f"{OFFICIAL}.safetensors")
    model.save_pretrained(tmp_path / "theirs")
    for place in (tmp_path, tmp_path / f"{OFFICIAL}.safetensors", tmp_path / "theirs"):
        encoder = UMT5File.open(place).load(torch.device("cpu"), torch.float32)
        text = UMT5(encoder, Recorded(), tokens=ids.shape[1])
        got = text.encode([str(row) for row in range(len(ids))])
        assert float((got - want).norm() / want.norm()) <= 1e-5
        assert not got[torch.from_numpy(~mask)].any()


def test_the_official_file_is_the_folder(folder: Path, tmp_path: Path) -> None:
    """With the tokenizer where the official release has it, in both widths of the weights."""
    state = load_file(folder / "text_encoder" / "model.safetensors")
    torch.save({official_umt5(name): own for name, own in state.items()}, tmp_path / f"{OFFICIAL}.pth")
    shutil.copytree(folder / "tokenizer", tmp_path / "google" / "umt5-xxl")
    with pytest.raises(UnsafeCheckpointError, match="convert"):
        UMT5.from_pretrained(tmp_path)
    convert(tmp_path / f"{OFFICIAL}.pth", tmp_path / f"{OFFICIAL}.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (UMT5.from_pretrained(own, tokens=12, dtype=dtype) for own in (tmp_path, folder))
        assert torch.equal(ours.encode(["a red cat", "blue dog"]), theirs.encode(["a red cat", "blue dog"]))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda held: held.pop("encoder.block.1.layer.0.SelfAttention.k.weight"), "missing: block.1"),
        (lambda held: held.update({"encoder.odd.weight": torch.zeros(2)}), "unknown: odd"),
        (lambda held: held.update({"encoder.final_layer_norm.weight": torch.zeros(3)}), "needs .16"),
        (lambda held: held["shared.weight"].fill_(float("nan")), "NaN"),
    ],
)
def test_weights_that_do_not_fit(folder: Path, tmp_path: Path, harm, says: str) -> None:
    """transformers would draw what is missing at random."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "text_encoder" / "model.safetensors"
    held = load_file(file)
    harm(held)
    save_file(held, file)
    with pytest.raises(CheckpointError, match=says):
        UMT5.from_pretrained(copy)


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
