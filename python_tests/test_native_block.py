# SPDX-License-Identifier: Apache-2.0
"""The blocks of a frozen model as one native call against its own modules, in float64; what is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from helpers.positions import token_positions
from native_isa import isa  # noqa: F401
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.engine import Engine
from ardiff_engine.errors import ArdiffError, ConfigError, PageTableError
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer, CellBatch, Tables
from ardiff_engine.models.ar_diffusion.block import Mlp
from ardiff_engine.models.dit.native_block import NativeBlocks
from ardiff_engine.models.dit.row_linear import RowLinear
from ardiff_engine.ops import FrameTable

ROPE = ARDiffusionConfig(width=48, depth=2, heads=3, tokens_per_frame=5, context_tokens=7, channels=4)
CONFIGS = {
    "rope": ROPE,
    "share_norm": replace(ROPE, merge="share_norm", positions="absolute"),
    "first_t": replace(ROPE, merge="sharenorm_shift_first_t", positions="absolute", mask="none"),
}
PAGES, ROWS = 9, 8


def model_of(config: ARDiffusionConfig) -> ARDiffusionTransformer:
    torch.manual_seed(0)
    model = ARDiffusionTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter.shape[-1] ** -0.5)
    model.freeze()
    return model


def cells(model: ARDiffusionTransformer, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Context and three frames of one stream, the last two in one group; page 0 is old."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    shape = (config.depth, PAGES, config.heads, ROWS, config.head_dim)
    k, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    pages = [3, 8, 1, 5]
    tokens = [config.context_tokens] + [config.tokens_per_frame] * 3
    slots = torch.cat([page * ROWS + torch.arange(n) for page, n in zip(pages, tokens, strict=True)])
    table = FrameTable.build(
        [[7], [5], [5, 5]],
        [[3], [3, 0, 8], [3, 0, 8, 1, 5]],
        [[7], [7, 5, 5], [7, 5, 5, 5, 5]],
        [[1], [3], [4, 5]],
    )
    batch = CellBatch(
        num_contexts=1,
        slots=slots,
        positions=token_positions([1, 2, 3], 5),
        frame_ids=torch.repeat_interleave(
            torch.tensor([0, 2, 3, 1], dtype=torch.int32), torch.tensor(tokens)
        ),
        table=table,
        k_pages=k,
        v_pages=v,
    )
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64).to(dtype)
    condition = torch.randn(1, 7, config.context_dim, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        tables = model.tables(torch.tensor([900.0, 400.0, 30.0], dtype=dtype))
    return x, batch, tables, condition


def run(model: ARDiffusionTransformer, dtype: torch.dtype) -> tuple[torch.Tensor, CellBatch]:
    x, batch, tables, condition = cells(model, dtype)
    with torch.no_grad():
        return model(x, batch, tables, condition), batch


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    native = NativeBlocks.run
    monkeypatch.setattr(NativeBlocks, "run", lambda self, *rest: calls.append(1) or native(self, *rest))
    return calls


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_pages_are_those_of_the_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    model = model_of(CONFIGS[name])
    out, batch = run(model, torch.float32)
    assert len(calls) == 1
    monkeypatch.delenv("ARDIFF_BACKEND")
    expected, wide = run(model.double(), torch.float64)
    assert len(calls) == 1
    for got, want in ((out, expected), (batch.k_pages, wide.k_pages), (batch.v_pages, wide.v_pages)):
        assert ((got - want).norm() / want.norm()).item() <= 3e-6


def test_bits_do_not_depend_on_threads() -> None:
    model, before = model_of(ROPE), torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(run(model, torch.float32)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def replaced(model: ARDiffusionTransformer) -> None:
    old = model.layers[0].mlp.fc1
    layer = torch.nn.Linear(old.in_features, old.out_features)
    layer.load_state_dict(old.state_dict())
    model.layers[0].mlp.fc1 = layer


def hooked(model: ARDiffusionTransformer) -> None:
    model.layers[0].attn.proj.register_forward_hook(lambda *_: None)


def observed(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp.register_forward_pre_hook(lambda *_: None)


class Relu(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu())


def of_another_class(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp.__class__ = Relu


def without_its_parts(model: ARDiffusionTransformer) -> None:
    model.layers[0].mlp = torch.nn.Identity()


def called_otherwise(model: ARDiffusionTransformer) -> None:
    layer = model.layers[0].mlp.fc2
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight.to(x)) * 0.5


CHANGES = [replaced, hooked, observed, of_another_class, without_its_parts, called_otherwise]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_is_refused_or_called_as_modules(change, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ROPE)
    change(model)
    with pytest.raises(ConfigError, match="block"):
        model.freeze()
    model.as_modules = True
    model.freeze()
    calls = count_calls(monkeypatch)
    got, _ = run(model, torch.float32)
    wide, _ = run(copy.deepcopy(model).double(), torch.float64)
    if change is not called_otherwise:  # whose copy still has the weights of the first
        assert ((got - wide).norm() / wide.norm()).item() <= 3e-6
    assert not calls


def test_global_hooks_are_refused() -> None:
    model = model_of(ROPE)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ConfigError, match="hooks"):
            model.freeze()
    finally:
        handle.remove()


def test_an_engine_freezes_its_model() -> None:
    model = model_of(ROPE)
    hooked(model)
    solver = DDIM(NoiseSchedule.sqrt_linear(), 4)
    with pytest.raises(ConfigError, match="hooks"):
        Engine(model, solver=solver)


def strided_bias(model: ARDiffusionTransformer) -> None:
    bias = model.layers[0].attn.proj.bias
    bias.data = torch.stack([bias.data, bias.data + 7], dim=1)[:, 0]


def pruned_norm(model: ARDiffusionTransformer) -> None:
    prune.random_unstructured(model.layers[0].attn.q_norm, "weight", 0.3)


def parametrised_norm(model: ARDiffusionTransformer) -> None:
    register_parametrization(model.layers[1].attn.k_norm, "weight", torch.nn.Softplus())


def wider_hidden_layer(model: ARDiffusionTransformer) -> None:
    for block in model.layers:
        block.mlp.fc1, block.mlp.fc2 = RowLinear(48, 1024), RowLinear(1024, 48)


def other_residual(model: ARDiffusionTransformer) -> None:
    model.layers[1].replaces_residual = True


@pytest.mark.parametrize(
    "change", [strided_bias, pruned_norm, parametrised_norm, wider_hidden_layer, other_residual]
)
def test_what_the_modules_compute_is_what_is_packed(change, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ROPE)
    change(model)
    with torch.no_grad():
        model.freeze()
    calls = count_calls(monkeypatch)
    got, _ = run(model, torch.float32)
    assert len(calls) == 1
    model.as_modules = True
    with torch.no_grad():
        model.freeze()
    assert torch.allclose(got, run(model, torch.float32)[0], atol=1e-5) and len(calls) == 1


def test_a_copy_of_a_frozen_model_is_a_model_of_its_own() -> None:
    model = model_of(ROPE)
    expected, _ = run(model, torch.float32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.layers[0].attn.k_norm.bias.add_(1.0)
            other.layers[1].mlp.fc1.bias.add_(1.0)
        changed, _ = run(other, torch.float32)
        wide, _ = run(copy.deepcopy(other).double(), torch.float64)
        assert ((changed - wide).norm() / wide.norm()).item() <= 3e-6
        assert not torch.allclose(changed, expected, atol=1e-3)
    assert torch.equal(run(model, torch.float32)[0], expected)


def test_training_mode_lets_go_of_packed_weights() -> None:
    model = model_of(ROPE)
    run(model, torch.float32)
    packed = [weakref.ref(layer.packed().panels) for block in model.layers for layer in block.linears]
    model.train()
    gc.collect()
    assert not any(panels() is not None for panels in packed)


@pytest.mark.parametrize("threads", [1, 2])
def test_output_that_nobody_wants_is_left_out_and_nothing_else(threads: int) -> None:
    """Three frames: in turn each of them, and pairs, are fed for their K/V alone."""
    model, before = model_of(replace(ROPE, depth=3)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, whole = run(model, torch.float32)
        for unwanted in ((0,), (1,), (2,), (0, 2), (0, 1), (0, 1, 2)):
            x, batch, tables, condition = cells(model, torch.float32)
            frames = torch.tensor([frame not in unwanted for frame in range(3)])
            wanted = torch.cat([torch.zeros(7, dtype=torch.bool), frames.repeat_interleave(5)])
            with torch.no_grad():
                out = model(x, replace(batch, wanted=wanted), tables, condition)
            out, other = out.reshape(3, -1), expected.reshape(3, -1)
            assert torch.equal(out[frames], other[frames])
            assert not any(torch.equal(out[frame], other[frame]) for frame in unwanted)
            assert torch.equal(batch.k_pages, whole.k_pages) and torch.equal(batch.v_pages, whole.v_pages)
    finally:
        torch.set_num_threads(before)


def test_another_pool_than_the_models_is_not_written_beyond_its_end() -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    shape = (ROPE.depth + 1, *batch.k_pages.shape[1:])
    guarded = [torch.full(shape, 7.0), torch.full(shape, 7.0)]
    model.blocks.append(copy.deepcopy(model.layers[0]))
    model.freeze()
    batch = replace(batch, k_pages=guarded[0][:-1], v_pages=guarded[1][:-1])
    (layers,) = tables.parts
    with torch.no_grad(), pytest.raises(IndexError):
        model(x, batch, Tables((torch.cat([layers, layers[:1]]),)), condition)
    assert all(bool((pages[-1] == 7.0).all()) for pages in guarded)


@pytest.mark.parametrize("undo", ["train", "load_state_dict", "to"])
def test_a_thawed_model_lets_go_of_packed_weights(undo: str) -> None:
    model = model_of(ROPE)
    packed = weakref.ref(model._native)
    if undo == "train":
        model.train()
    elif undo == "to":
        model.to(torch.float64)
    else:
        model.load_state_dict(model.state_dict())
    gc.collect()
    assert packed() is None


def every_other(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t + 1], dim=-1)[..., 0]


@pytest.mark.parametrize(
    "change",
    [
        {"slots": every_other},
        {"frame_ids": every_other},
        {"v_pages": lambda v: v.transpose(2, 3).contiguous().transpose(2, 3)},
        {"k_pages": every_other, "v_pages": every_other},
        {"frame_ids": torch.Tensor.long},
        {"slots": lambda slots: slots[:10]},
        {"k_pages": lambda k: k.double(), "v_pages": lambda v: v.double()},
        {"k_pages": lambda k: k[:, :, :2].contiguous(), "v_pages": lambda v: v[:, :, :2].contiguous()},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_batch_of_another_form_gives_what_the_ops_give(
    change: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, or the same typed error."""

    def outcome() -> torch.Tensor | str:
        model = model_of(ROPE)
        x, batch, tables, condition = cells(model, torch.float32)
        batch = replace(batch, **{name: form(getattr(batch, name)) for name, form in change.items()})
        try:
            with torch.no_grad():
                return model(x, batch, tables, condition)
        except ArdiffError as error:
            return str(error)

    got = outcome()
    monkeypatch.setattr(NativeBlocks, "takes", lambda *given: False)
    expected = outcome()
    assert type(got) is type(expected)
    assert got == expected if isinstance(got, str) else torch.allclose(got, expected, atol=1e-5)


def test_the_reference_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    run(model_of(ROPE), torch.float32)
    assert not calls


def test_a_changed_weight_counts_from_the_next_freeze_on() -> None:
    model = model_of(ROPE)
    before, _ = run(model, torch.float32)
    with torch.no_grad():
        model.layers[1].mlp.fc2.weight.mul_(1.5)
    assert torch.equal(run(model, torch.float32)[0], before)
    model.freeze()
    after, _ = run(model, torch.float32)
    expected, _ = run(model.double(), torch.float64)
    assert not torch.allclose(before, after, atol=1e-3)
    assert ((after - expected).norm() / expected.norm()).item() <= 3e-6


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("slots", PAGES * ROWS, "slot"), ("slots", -2, "slot"), ("frame_ids", 99, "frame id")],
)
def test_bad_numbers_are_found_before_anything_is_written(field: str, value: int, message: str) -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    getattr(batch, field)[-1] = value
    k = batch.k_pages.clone()
    with torch.no_grad(), pytest.raises(PageTableError, match=message):
        model(x, batch, tables, condition)
    assert torch.equal(batch.k_pages, k)


def test_a_table_of_another_batch_is_found() -> None:
    model = model_of(ROPE)
    x, batch, tables, condition = cells(model, torch.float32)
    for table in (
        FrameTable.build([21], [[3]], [[7]]),
        FrameTable.build([22], [[PAGES]], [[7]]),
        FrameTable.build([22], [[3]], [[ROWS + 1]]),
    ):
        with torch.no_grad(), pytest.raises(PageTableError, match="table of another batch"):
            model(x, replace(batch, table=table), tables, condition)


def test_more_tokens_than_a_chunk_change_no_bits() -> None:
    """The block goes over chunks of 128 rows per thread: each frame gives what it gives alone."""
    model, frames, length = model_of(ROPE), 90, ROPE.tokens_per_frame
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(frames * length, ROPE.channels, generator=generator)
    with torch.no_grad():
        tables = model.tables(torch.linspace(0, 999, 7))

    def run(chosen: range) -> torch.Tensor:
        count, pages = len(chosen), torch.zeros(2, ROPE.depth, frames, ROPE.heads, ROWS, ROPE.head_dim)
        own = [[frame] for frame in chosen]
        batch = CellBatch(
            num_contexts=0,
            slots=(torch.tensor(own) * ROWS + torch.arange(length)).reshape(-1),
            positions=token_positions(chosen, length),
            frame_ids=(torch.tensor(chosen, dtype=torch.int32) % 8).repeat_interleave(length),
            table=FrameTable.build([length] * count, own, [[length]] * count),
            k_pages=pages[0],
            v_pages=pages[1],
        )
        with torch.no_grad():
            return model(x[chosen.start * length : chosen.stop * length], batch, tables)

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            whole = run(range(frames))
            for first in (0, 25, 51, 77, 89):
                own = slice(first * length, (first + 1) * length)
                assert torch.equal(run(range(first, first + 1)), whole[own]), (threads, first)
    finally:
        torch.set_num_threads(before)
