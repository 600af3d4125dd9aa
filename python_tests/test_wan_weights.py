# SPDX-License-Identifier: Apache-2.0
"""Wan checkpoints under every naming that is around, and LoRA files of every layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official_keys import generate_weights
from safetensors.torch import save_file

import ardiff_engine as ade
from ardiff_engine.errors import CheckpointError, ConfigError, UnsafeCheckpointError
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.weights.wan_layout import official_name, read_wan_config

FOLDER = Path(__file__).parent / "golden" / "wan"
NAMES = {name: np.load(FOLDER / f"{name}.npz") for name in ("bidirectional", "x_bidirectional_i2v")}
LORA = np.load(FOLDER / "x_lora.npz")
LORA_CONFIG = json.loads(str(LORA["config"]))


def small(name: str = "bidirectional") -> WanTransformer:
    model = WanTransformer(WanConfig.from_official(json.loads(str(NAMES[name]["config"]))))
    generate_weights(model)
    return model.eval()


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


HEADS = {"heads": 3, "text_tokens": 16}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: name,
        lambda name: f"model.{name}",
        lambda name: f"generator_ema.model.{name}",
        lambda name: f"generator.model._fsdp_wrapped_module.{name}",
        lambda name: "model." + name.replace("self_attn.", "_fsdp_wrapped_module.self_attn."),
        lambda name: name.replace("blocks.", "_orig_mod.blocks.").replace(
            ".ffn", "._checkpoint_wrapped_module._fsdp_wrapped_module.ffn"
        ),
    ],
    ids=["official", "model", "ema", "generator, fsdp", "fsdp twice", "compiled, checkpointed"],
)
def test_names_and_their_wrappings(tmp_path: Path, wrap) -> None:
    model = small()
    save_file({wrap(name): value for name, value in model.state_dict().items()}, tmp_path / "wan.safetensors")
    assert same(ade.weights.load_wan(tmp_path / "wan.safetensors", HEADS), model)


def test_the_average_is_preferred_and_the_critic_is_not_the_model(tmp_path: Path) -> None:
    model = small()
    parts = {f"generator_ema.model.{name}": value for name, value in model.state_dict().items()}
    for part in ("generator", "critic"):
        parts |= {f"{part}.model.{name}": value + 1 for name, value in model.state_dict().items()}
    save_file(parts, tmp_path / "model.safetensors")
    assert same(ade.weights.load_wan(tmp_path, HEADS), model)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_diffusers(name: str) -> None:
    golden = NAMES[name]
    pairs = zip(map(str, golden["official_keys"]), map(str, golden["official_to_diffusers"]), strict=True)
    for own, theirs in pairs:
        assert official_name(theirs) == own and official_name(own) == own


@pytest.mark.parametrize("shards", [False, True])
@torch.no_grad()
def test_a_folder_that_diffusers_wrote(tmp_path: Path, shards: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = json.loads(str(NAMES["bidirectional"]["config"]))
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(**config["diffusers"]).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="200KB" if shards else "1GB")
    ours = ade.weights.load_wan(tmp_path, {"text_tokens": 16})  # heads are in its config.json
    assert ours.config.heads == 3
    x, text = torch.randn(1, 2, 4, 4, 6), torch.randn(1, 16, 32)
    expected = theirs(x.transpose(1, 2), torch.tensor([400.0]), text).sample.transpose(1, 2)
    got = ours.forward_clip(x, torch.full((1, 2), 400.0), text)
    assert float((got - expected).norm() / expected.norm()) <= 2e-5


@torch.no_grad()
def test_a_pipeline_folder_of_image_to_video(tmp_path: Path) -> None:
    """As diffusers writes it, with the embedder of CLIP's rows; all sizes are in the files."""
    diffusers = pytest.importorskip("diffusers")
    config = json.loads(str(NAMES["x_bidirectional_i2v"]["config"]))
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(**config["diffusers"]).eval()
    theirs.save_pretrained(tmp_path / "transformer")
    ours = ade.weights.load_wan(tmp_path)
    assert ours.config.image_dim == 1280 and ours.config.channels == config["in_dim"]
    x, text, clip = (
        torch.randn(1, 2, config["in_dim"], 4, 6),
        torch.randn(1, 512, 32),
        torch.randn(1, 257, 1280),
    )
    given = {"encoder_hidden_states_image": clip}
    expected = theirs(x.transpose(1, 2), torch.tensor([400.0]), text, **given).sample.transpose(1, 2)
    got = ours.forward_clip(x, torch.full((1, 2), 400.0), text, image=clip)
    assert float((got - expected).norm() / expected.norm()) <= 2e-5


@pytest.mark.parametrize(
    "config",
    [
        WanConfig(),
        WanConfig(5120, 40, 40, 13824),
        WanConfig(5120, 40, 40, 13824, channels=36, image_dim=1280),
        WanConfig(3072, 30, 24, 14336, channels=48, out_channels=48),
        WanConfig(fps_embedding=True),
    ],
    ids=["1.3B", "14B", "14B image-to-video", "5B", "SkyReels 1.3B"],
)
def test_published_sizes_are_read_from_shapes(config: WanConfig) -> None:
    with torch.device("meta"):
        model = WanTransformer(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert read_wan_config(shapes, {}, "a file") == config


def test_shards_of_different_saves(tmp_path: Path) -> None:
    state = small().state_dict()
    halves = list(state)[::2], list(state)[1::2]
    files = {f"diffusion_pytorch_model-{n}.safetensors": names for n, names in enumerate(halves)}
    for file, names in files.items():
        save_file({name: state[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert same(ade.weights.load_wan(tmp_path, HEADS), small())
    moved = halves[0][3]
    save_file({name: state[name] for name in [*halves[1], moved]}, tmp_path / list(files)[1])
    with pytest.raises(CheckpointError, match=moved):
        ade.weights.load_wan(tmp_path, HEADS)


def test_half_precision_files(tmp_path: Path) -> None:
    model = small()
    save_file({n: v.bfloat16() for n, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    half = ade.weights.load_wan(tmp_path, HEADS, dtype=torch.bfloat16)
    assert same(half, model.bfloat16())
    assert ade.weights.load_wan(tmp_path, HEADS).dtype == torch.float32


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    state, path = small().state_dict(), tmp_path / "wan.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match="heads"):
        ade.weights.load_wan(path)
    renamed = {name.replace("self_attn.q.", "self_attn.query."): value for name, value in state.items()}
    save_file(renamed, path)
    with pytest.raises(CheckpointError, match=r"self_attn\.q\.weight.*self_attn\.query\.weight"):
        ade.weights.load_wan(path, HEADS)
    for change in (
        {"head.head.bias": torch.zeros(3)},
        {"blocks.1.modulation": torch.full((1, 6, 72), torch.nan)},
    ):
        save_file({**state, **change}, path)
        with pytest.raises(CheckpointError, match=next(iter(change))):
            ade.weights.load_wan(path, HEADS)
    save_file({**state, "module.head.head.bias": state["head.head.bias"] + 1}, path)
    with pytest.raises(CheckpointError):
        ade.weights.load_wan(path, HEADS)
    save_file({name: value for name, value in state.items() if not name.startswith("blocks.0.")}, path)
    with pytest.raises(CheckpointError):
        ade.weights.load_wan(path, HEADS)
    torch.save({"generator": state}, tmp_path / "wan.pt")
    with pytest.raises(UnsafeCheckpointError, match="convert"):
        ade.weights.load_wan(tmp_path / "wan.pt")


def test_a_training_checkpoint_after_conversion(tmp_path: Path) -> None:
    model = small()
    wrapped = {f"model._fsdp_wrapped_module.{name}": value for name, value in model.state_dict().items()}
    torch.save(
        {"generator_ema": wrapped, "critic": {"head": torch.zeros(2)}, "step": 600}, tmp_path / "sf.pt"
    )
    ade.weights.convert(tmp_path / "sf.pt", tmp_path / "sf.safetensors")
    assert same(ade.weights.load_wan(tmp_path / "sf.safetensors", HEADS), model)


# --- LoRA


def lora_file(layout: str, path: Path) -> Path:
    start = f"lora_{layout}::"
    save_file({k[len(start) :]: torch.from_numpy(LORA[k]) for k in LORA.files if k.startswith(start)}, path)
    return path


def lora_model() -> WanTransformer:
    model = WanTransformer(WanConfig.from_official(LORA_CONFIG)).eval()
    generate_weights(model)
    return model


@torch.no_grad()
def output(model: WanTransformer) -> torch.Tensor:
    return model.forward_clip(*(torch.from_numpy(LORA[name]) for name in ("x", "t", "text")))


@pytest.mark.parametrize(
    ("layout", "scale", "result"),
    [
        ("lightx2v", 1.0, "y_lightx2v"),
        ("lightx2v", 0.5, "y_lightx2v_s0.5"),
        ("lightx2v_diff", 1.0, "y_lightx2v_diff"),
        ("lightx2v_diff", 0.5, "y_lightx2v_diff_s0.5"),
        ("kohya_flat", 1.0, "y_kohya_flat"),
    ],
)
def test_official_numbers_of_merged_updates(tmp_path: Path, layout: str, scale: float, result: str) -> None:
    model = lora_model()
    ade.weights.load_lora(model, lora_file(layout, tmp_path / "lora.safetensors"), scale)
    want = torch.from_numpy(LORA[result])
    assert float((output(model) - want).norm() / want.norm()) <= 1e-5


@pytest.mark.parametrize("alpha", ["given", "beside"])
def test_alpha_of_peft(tmp_path: Path, alpha: str) -> None:
    model = lora_model()
    path = lora_file("peft", tmp_path / "lora.safetensors")
    if alpha == "beside":
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"lora_alpha": LORA_CONFIG["alpha"], "r": 4})
        )
        ade.weights.load_lora(model, path)
    else:
        ade.weights.load_lora(model, path, alpha=LORA_CONFIG["alpha"])
    want = torch.from_numpy(LORA["y_peft"])
    assert float((output(model) - want).norm() / want.norm()) <= 1e-5


def test_names_of_diffusers_and_of_a_training_dump(tmp_path: Path) -> None:
    """One update under four namings gives one model."""
    torch.manual_seed(0)
    down, up = torch.randn(4, 72), torch.randn(72, 4)
    spellings = [
        ("blocks.0.self_attn.o", "lora_A.weight", "lora_B.weight"),
        ("transformer.blocks.0.attn1.to_out.0", "lora_A.weight", "lora_B.weight"),
        (
            "generator_lora.base_model.model.blocks.0.self_attn.o",
            "lora_A.default.weight",
            "lora_B.default.weight",
        ),
        ("blocks.0.self_attn.o", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("diffusion_model.blocks.0.self_attn.o", "lora.down.weight", "lora.up.weight"),
    ]
    models = []
    for module, lower, upper in spellings:
        tensors = {f"{module}.{lower}": down, f"{module}.{upper}": up}
        if module.startswith("generator_lora"):
            tensors["critic_lora.whatever.lora_A.default.weight"] = down + 1
        save_file(tensors, tmp_path / "lora.safetensors")
        models.append(lora_model())
        assert ade.weights.load_lora(models[-1], tmp_path / "lora.safetensors", 2.0) == 1
    assert all(same(models[0], other) for other in models[1:])
    changed = models[0].blocks[0].self_attn.o.weight - lora_model().blocks[0].self_attn.o.weight
    torch.testing.assert_close(changed, 2.0 * up @ down, rtol=1e-4, atol=1e-5)


def test_what_is_no_update_changes_nothing(tmp_path: Path) -> None:
    model, path = lora_model(), tmp_path / "lora.safetensors"
    good = {
        "blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 72),
        "blocks.0.self_attn.q.lora_B.weight": torch.ones(72, 4),
    }
    bad: list[dict[str, torch.Tensor]] = [
        {"blocks.9.self_attn.q.lora_A.weight": torch.ones(4, 72)},
        {"blocks.0.self_attn.q.weights": torch.ones(1)},
        {"blocks.1.self_attn.k.lora_A.weight": torch.ones(4, 72)},
        {"blocks.1.norm1.diff": torch.ones(72)},
        {
            "blocks.1.ffn.0.lora_A.weight": torch.ones(4, 72),
            "blocks.1.ffn.0.lora_B.weight": torch.ones(72, 4),
        },
        {
            "blocks.1.ffn.0.lora_A.weight": torch.ones(4, 72),
            "blocks.1.ffn.0.lora_B.weight": torch.ones(128, 3),
        },
    ]
    for wrong in bad:
        save_file({**good, **wrong}, path)
        with pytest.raises(CheckpointError, match=next(iter(wrong)).split(".")[2]):
            ade.weights.load_lora(model, path)
    save_file({"critic_lora.x": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no update"):
        ade.weights.load_lora(model, path)
    save_file(good, path)
    with pytest.raises(ConfigError):
        ade.weights.load_lora(model, path, float("nan"))
    assert same(model, lora_model())


@pytest.mark.parametrize("rule", ["plain", "by root", "header", "none"])
def test_where_alpha_comes_from(tmp_path: Path, rule: str) -> None:
    """A folder of PEFT, of diffusers, and one that says nothing."""
    torch.manual_seed(0)
    down, up, alpha = torch.randn(4, 72), torch.randn(72, 4), 6
    tensors = {"blocks.0.self_attn.o.lora_A.weight": down, "blocks.0.self_attn.o.lora_B.weight": up}
    if rule == "header":
        values = {"transformer.lora_alpha": alpha, "transformer.r": 4}
        named = {f"transformer.{name}": value for name, value in tensors.items()}
        header = {"format": "pt", "lora_adapter_metadata": json.dumps(values)}
        save_file(named, tmp_path / "pytorch_lora_weights.safetensors", header)
    else:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        values = {"lora_alpha": alpha, "r": 4, "use_rslora": rule == "by root", "alpha_pattern": {}}
        if rule != "none":
            (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    model = lora_model()
    before = model.blocks[0].self_attn.o.weight.clone()
    assert ade.weights.load_lora(model, tmp_path) == 1
    strength = {"plain": alpha / 4, "header": alpha / 4, "by root": alpha / 2, "none": 1.0}[rule]
    torch.testing.assert_close(
        model.blocks[0].self_attn.o.weight, before + strength * up @ down, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "values", [{"lora_alpha": "6"}, {"lora_alpha": 6, "alpha_pattern": {"o": 3}}, {"use_dora": True}]
)
def test_adapters_that_need_more_than_one_alpha(tmp_path: Path, values: dict) -> None:
    name = "blocks.0.self_attn.o.lora"
    tensors = {f"{name}_A.weight": torch.ones(4, 72), f"{name}_B.weight": torch.ones(72, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    model = lora_model()
    with pytest.raises(CheckpointError, match="alpha"):
        ade.weights.load_lora(model, tmp_path)
    assert same(model, lora_model())


def test_names_that_diffusers_gives_to_converted_updates() -> None:
    modules = {name for name, _ in lora_model().named_modules()}
    for stored in map(str, LORA["diffusers_converted_keys"]):
        name = stored.removeprefix("transformer.").split(".lora_")[0]
        assert official_name(f"{name}.weight").removesuffix(".weight") in modules, stored


def test_nan_in_the_last_update_changes_nothing(tmp_path: Path) -> None:
    model, tensors = lora_model(), {}
    for module in ("q", "k", "v", "o"):
        tensors[f"blocks.1.self_attn.{module}.lora_A.weight"] = torch.ones(4, 72)
        tensors[f"blocks.1.self_attn.{module}.lora_B.weight"] = torch.ones(72, 4)
    tensors["blocks.1.self_attn.v.lora_B.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        ade.weights.load_lora(model, tmp_path / "lora.safetensors")
    assert same(model, lora_model())
