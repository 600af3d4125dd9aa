# SPDX-License-Identifier: Apache-2.0
"""The transformer against the official numbers and against a dense float64 network written from the
equations.
"""

from __future__ import annotations

import pytest
import torch
from dense_oracle import DenseTransformer, golden, randomise, visibility

from ardiff_engine import ops
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.models import ARDiffusionConfig, ARDiffusionTransformer
from ardiff_engine.models.ar_diffusion.block import TimestepEmbedder
from ardiff_engine.models.dit.positions import sincos_positions

MERGES = ("share_norm", "separate_norm", "sharenorm_shift_first_t", "reproduce")
MASKS = {
    "None": "none",
    "temporal_causal": "temporal_causal",
    "video_temporal_causal": "video_temporal_causal",
}


def tiny(
    merge: str = "share_norm", mask: str = "video_temporal_causal", positions: str = "absolute", **sizes
) -> ARDiffusionTransformer:
    options = {
        "num_frames": 4,
        "tokens_per_frame": 3,
        "width": 32,
        "depth": 3,
        "heads": 4,
        "context_tokens": 5,
        "context_dim": 12,
    }
    model = ARDiffusionTransformer(
        ARDiffusionConfig(mask=mask, merge=merge, positions=positions, **(options | sizes))
    )
    randomise(model)
    return model.eval()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("positions", ["abs", "rope_qknorm"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("merge", MERGES)
def test_official_outputs(merge, mask, positions):
    data = golden("stage2_tiny.npz")
    model = tiny(merge, MASKS[mask], "absolute" if positions == "abs" else "rope")
    with torch.no_grad():
        out = model.forward_clip(data["x"], data["t"], data["context"])
    torch.testing.assert_close(out, data[f"out__{merge}__{mask}__{positions}"], rtol=1e-5, atol=1e-5)


def test_generated_weights_are_the_official_ones():
    data = golden("stage2_tiny_weights_share_norm_vtc_abs.npz")
    stored = {key.removeprefix("w::"): value for key, value in data.items() if key.startswith("w::")}
    model = tiny()
    own = dict(model.named_parameters())
    assert set(stored) - {"pos_embed"} == set(own) - {"context_embedding"}
    for key in set(stored) & set(own):
        torch.testing.assert_close(own[key].detach(), stored[key], rtol=0, atol=0)


def test_embeddings_are_the_official_ones():
    data = golden("stage2_tiny.npz")
    model = tiny()
    torch.testing.assert_close(model.pos_embed, data["pos_embed"], rtol=0, atol=1e-6)
    t = data["t"].reshape(-1)
    # One ulp of a frequency, where exp differs between machines, is 4e-5 radians at t = 600.
    torch.testing.assert_close(
        TimestepEmbedder.frequencies(t), data["t_freq_embedding"].reshape(-1, 256), rtol=0, atol=5e-5
    )
    torch.testing.assert_close(model.t_embedder(t), data["t_embedding"].reshape(-1, 32), rtol=1e-5, atol=1e-5)
    full = golden("pos_embed_full.npz")
    table = sincos_positions(512, 1152)
    torch.testing.assert_close(table[full["rows"]].float(), full["values"], rtol=0, atol=1e-6)
    assert abs(float(table.sum()) - float(full["checksum"])) < 1e-2


@pytest.mark.parametrize("mask", ["temporal_causal", "video_temporal_causal"])
def test_leak_of_the_last_frame(mask):
    """With the released mask the last frame reaches frame 0 through the context; with temporal_causal it must
    not.
    """
    data = golden("stage2_tiny.npz")
    model = tiny(mask=mask)
    changed = data["x"].clone()
    changed[:, -1] += 1
    with torch.no_grad():
        moved = model.forward_clip(changed, data["t"], data["context"]) - model.forward_clip(
            data["x"], data["t"], data["context"]
        )
    if mask == "temporal_causal":
        assert float(moved[:, :-1].abs().max()) == 0
    else:
        assert float(moved[:, 0].abs().max()) > 1e-3


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("mask", list(MASKS.values()))
@pytest.mark.parametrize(
    "sizes",
    [{"tokens_per_frame": 7, "context_tokens": 9, "heads": 2}, {"tokens_per_frame": 16, "context_tokens": 1}],
)
def test_against_dense_float64(merge, mask, sizes):
    model = tiny(merge, mask, "rope", num_frames=6, **sizes)
    config = model.config
    torch.manual_seed(0)
    x = torch.randn(2, 5, config.tokens_per_frame, config.channels)
    t = torch.randint(0, 1000, (2, 5)).sort(dim=1).values
    context = torch.randn(2, config.context_tokens, config.context_dim)
    with torch.no_grad():
        out = model.forward_clip(x, t, context)
    mask_of = visibility(config, 5, (lambda q, k: True) if mask == "none" else (lambda q, k: k <= q))
    dense = DenseTransformer(model)
    expected = torch.stack([dense(x[i], t[i], context[i], mask_of) for i in range(2)])
    assert float((out - expected).norm() / expected.norm()) < 5e-6


def test_gradients_match_dense_autograd():
    """Every parameter's gradient, context included, against autograd through the same network in float64
    SDPA.
    """
    model = tiny("separate_norm", "temporal_causal", "rope")
    config = model.config
    torch.manual_seed(1)
    x = torch.randn(2, 4, 3, 4)
    t = torch.randint(0, 1000, (2, 4)).sort(dim=1).values
    model.forward_clip(x, t, model.context(batch=2)).square().sum().backward()
    dense = DenseTransformer(model)
    dense.w = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in dense.w.items()}
    mask = visibility(config, 4, lambda q, k: k <= q)
    context = dense.w["context_embedding"][0]
    sum(dense(x[i], t[i], context, mask).square().sum() for i in range(2)).backward()
    for name, parameter in model.named_parameters():
        expected = dense.w[name].grad
        assert parameter.grad is not None, name
        assert float((parameter.grad - expected).norm()) <= 2e-5 * float(expected.norm()) + 1e-6, name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp"])
def test_training_calls_layers_that_were_hooked(name, autocast, monkeypatch):
    """What a hook or another layer changes must be in the loss, though training takes weights out of layers
    that nobody touched."""
    model = tiny("separate_norm", "temporal_causal", "rope", depth=1)
    torch.manual_seed(1)
    x, t = torch.randn(1, 4, 3, 4), torch.tensor([[10, 20, 30, 40]])
    taken = []
    fused = ops.bias_gelu
    monkeypatch.setattr(ops, "bias_gelu", lambda *given: taken.append(1) or fused(*given))
    with torch.autocast("cpu", enabled=autocast):
        plain = model.forward_clip(x, t, model.context())
        assert len(taken) == (not autocast)
        seen = []
        handle = model.layers[0].get_submodule(name).register_forward_hook(lambda *given: seen.append(given))
        hooked = model.forward_clip(x, t, model.context())
        handle.remove()
        assert len(seen) == 1 and len(taken) == (not autocast)
        assert relative(hooked, plain) < (1e-2 if autocast else 2e-6)
        handle = model.layers[0].get_submodule(name).register_forward_hook(lambda *given: 0 * given[2])
        assert relative(model.forward_clip(x, t, model.context()), plain) > 1e-2
        handle.remove()
        gradients = []
        handle = (
            model.layers[0]
            .get_submodule(name)
            .register_full_backward_hook(lambda *given: gradients.append(given))
        )
        model.forward_clip(x, t, model.context()).square().sum().backward()
        handle.remove()
        assert len(gradients) == 1


def test_training_without_biases():
    """Layers whose bias was removed, as quantisation and pruning tools do."""
    model = tiny("separate_norm", "temporal_causal", "rope", depth=1)
    torch.manual_seed(1)
    x, t = torch.randn(1, 4, 3, 4), torch.tensor([[10, 20, 30, 40]])
    for layer in model.layers[0].linears:
        torch.nn.init.zeros_(layer.bias)
    want = model.forward_clip(x, t, model.context())
    for layer in model.layers[0].linears:
        layer.bias = None
    got = model.forward_clip(x, t, model.context())
    assert relative(got, want) < 2e-6
    got.square().sum().backward()
    assert all(layer.weight.grad.any() for layer in model.layers[0].linears)


def test_official_loss_and_gradient_norm():
    data = golden("train_loss_tiny.npz")
    model = tiny()
    out = model.forward_clip(data["x_noisy"], data["t"], data["context"])
    torch.testing.assert_close(out.detach(), data["x0_output"], rtol=1e-5, atol=1e-5)
    loss = (out - data["x0"]).square().mean()
    torch.testing.assert_close(loss.detach(), data["x0_loss"], rtol=1e-5, atol=0)
    loss.backward()
    trained = [p.grad.norm() for name, p in model.named_parameters() if name != "context_embedding"]
    torch.testing.assert_close(torch.stack(trained).norm(), data["x0_gradnorm"], rtol=1e-4, atol=0)


def test_contexts_of_classes():
    config = ARDiffusionConfig(2, 4, 4, 16, 1, 2, 3, 6, num_classes=5)
    model = ARDiffusionTransformer(config)
    assert model.context_embedding.shape == (6, 3, 6)
    assert torch.equal(model.context(torch.tensor([4, 0])), model.context_embedding[[4, 0]])
    assert torch.equal(model.null_context(), model.context_embedding[5:6])
    with pytest.raises(TensorError, match="class_ids"):
        model.context(torch.tensor([5]))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 30},
        {"mask": "causal"},
        {"positions": "sin"},
        {"merge": "x"},
        {"depth": 0},
        {"null_class": 2},
        {"num_classes": 0},
        {"mlp_ratio": 0.0},
    ],
)
def test_bad_configurations(change):
    with pytest.raises(ConfigError):
        ARDiffusionConfig(**change)


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'context_dim'"):
        ARDiffusionConfig.from_dict({"contxt_dim": 3})
    config = ARDiffusionConfig(num_frames=3)
    assert ARDiffusionConfig.from_dict(config.to_dict()) == config


def test_bad_clips():
    model = tiny()
    x, t, context = torch.zeros(1, 4, 3, 4), torch.zeros(1, 4), torch.zeros(1, 5, 12)
    for bad in (
        (x[0], t, context),
        (x, t[:, :2], context),
        (x, t, context[:, :4]),
        (x.repeat(1, 2, 1, 1), t.repeat(1, 2), context),
    ):
        with pytest.raises(TensorError):
            model.forward_clip(*bad)


def test_default_size_is_the_published_one():
    with torch.device("meta"):
        model = ARDiffusionTransformer(
            ARDiffusionConfig(positions="absolute", mask="video_temporal_causal", merge="share_norm")
        )
    assert sum(p.numel() for n, p in model.named_parameters() if n != "context_embedding") == 671_864_836
