# SPDX-License-Identifier: Apache-2.0
"""The blocks' weights as an engine lays them out: ordinary parameters, and no second copy."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ardiff_engine.diffusion import FlowSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.models.dit.transposed_weights import transposed
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.ops.backend import on_native_cpu
from ardiff_engine.plan import blocks

CONFIG = WanConfig(
    width=60, depth=2, heads=2, mlp_width=100, channels=4, out_channels=4, text_dim=8, text_tokens=16,
    frequency_dim=8,
)  # fmt: skip
native = pytest.mark.skipif(not on_native_cpu(torch.empty(0)), reason="needs the native kernels")


def model_of(config: WanConfig = CONFIG) -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def video(model: WanTransformer, size: tuple[int, int], block: int = 1) -> torch.Tensor:
    engine = Engine(
        model, solver=solvers.Euler(FlowSchedule(), 2), memory=Window(4), plan=blocks(block), max_pages=400
    )
    text = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    stream = engine.submit(Request(num_frames=4, size=size, condition=text, seed=2))
    return torch.stack([frame.latent for frame in stream])


@native
@pytest.mark.parametrize("width", [24, 48, 60, 144])
@pytest.mark.parametrize("size", [(2, 2), (2, 6), (4, 8), (24, 26)])
def test_transposed_weights_give_the_bits_of_packed_ones(size: tuple[int, int], width: int) -> None:
    """Widths that end inside a panel, one token up to several blocks of rows, and ranges of inputs."""
    model = model_of(WanConfig(**{**CONFIG.to_dict(), "width": width, "mlp_width": 700 - width}))
    other = copy.deepcopy(model)
    for block in other.blocks:
        for part, name in ((block.self_attn, "o"), (block.cross_attn, "q"), (block.cross_attn, "o")):
            setattr(part, name, packed(getattr(part, name)))
        block.ffn[0], block.ffn[2] = packed(block.ffn[0]), packed(block.ffn[2])
    assert torch.equal(video(model, size, 2), video(other, size, 2))


def packed(layer: nn.Linear) -> RowLinear:
    made = RowLinear(layer.in_features, layer.out_features)
    made.load_state_dict(layer.state_dict())
    return made.eval()


@native
def test_a_frozen_model_has_the_same_parameters_and_holds_each_once() -> None:
    model = model_of()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    model.freeze()
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
    block = model.blocks[0]
    weights = {t.untyped_storage().data_ptr() for t in model._native._held if t.ndim == 2}
    for layer in (block.self_attn.q, block.self_attn.k, block.self_attn.v, block.cross_attn.o, block.ffn[0]):
        assert layer.weight.untyped_storage().data_ptr() in weights
    places = [p.data_ptr() for p in model.parameters()]
    model.freeze()
    assert places == [p.data_ptr() for p in model.parameters()]


@native
def test_training_saving_and_loading_go_on_after_an_engine(tmp_path: Path) -> None:
    model, untouched = model_of(), model_of()
    first = video(model, (4, 6))
    assert torch.equal(first, video(untouched, (4, 6)))
    untouched = model_of()
    x, t, text = torch.randn(1, 2, 4, 4, 6), torch.full((1, 2), 300.0), torch.randn(1, 5, 8)
    for own in (model, untouched):
        optimizer = torch.optim.AdamW(own.train().parameters(), lr=1e-2)
        own.forward_clip(x, t, text, block=1).square().mean().backward()
        optimizer.step()
    for (name, got), want in zip(model.named_parameters(), untouched.parameters(), strict=True):
        assert torch.allclose(got.grad, want.grad, rtol=1e-3, atol=1e-5), name
        assert torch.allclose(got, want, atol=2.1e-2), name
    video(model.eval(), (4, 6))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = model_of()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    trained = video(model.eval(), (4, 6))
    assert torch.equal(trained, video(other, (4, 6))) and not torch.equal(trained, first)


@native
@pytest.mark.parametrize("leave", [lambda model: model.state_dict(), lambda model: model.train()])
def test_a_running_stream_does_not_see_what_becomes_of_the_model(leave) -> None:
    model = model_of()
    expected = video(model, (4, 6))
    engine = Engine(
        model, solver=solvers.Euler(FlowSchedule(), 2), memory=Window(4), plan=blocks(1), max_pages=400
    )
    text = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    stream = iter(engine.submit(Request(num_frames=4, size=(4, 6), condition=text, seed=2)))
    frames = [next(stream).latent]
    leave(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    with torch.no_grad():
        model.eval().blocks[0].ffn[0].weight.zero_()
    frames += [frame.latent for frame in stream]
    assert torch.equal(torch.stack(frames), expected)


@native
def test_a_model_that_moves_away_leaves_nothing_behind() -> None:
    model = model_of()
    model.freeze()
    assert model.double()._native is None


def test_a_weight_that_is_computed_is_copied() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))
    expected = layer.weight.detach().clone()
    assert torch.equal(transposed([layer]).t(), expected) and torch.equal(layer.weight, expected)


@native
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_peak_is_weights_and_pages() -> None:
    """Of 1.1 GiB of weights and as much of pages: a second copy of the weights would make it 1.5."""
    script = Path(__file__).parent.parent / "benchmarks" / "wan_memory.py"
    done = subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["peak_share"] < 1.2
