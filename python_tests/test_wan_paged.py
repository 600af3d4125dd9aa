# SPDX-License-Identifier: Apache-2.0
"""Wan over pages: block after block of frames gives the official numbers of the whole clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401
from test_wan_transformer import error, official

from ardiff_engine.errors import ConfigError, PageTableError, TensorError
from ardiff_engine.models import CellBatch
from ardiff_engine.models.cell_batch import ConditionPages
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.positions import token_positions
from ardiff_engine.models.wan.video import PICTURES
from ardiff_engine.ops import FrameTable
from ardiff_engine.weights import load_model, save_model

ROWS = 16
CLIPS = ["clip_causal_c1", "clip_causal_c3", "clip_causal_c3_local6", "clip_first_1_3_3"]


def entries(tokens: int) -> list[int]:
    """Rows of each page of so many tokens."""
    full, rest = divmod(tokens, ROWS)
    return [ROWS] * full + [rest] * (rest > 0)


class Clips:
    """Clips x [B, F, C, H, W] with timesteps t [B, F] and texts, run over one pool of pages."""

    def __init__(self, video: WanTransformer, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> None:
        """text: prompts, or other conditions of the model, of each clip."""
        self.video, self.x, self.spec, self.size = video, video.to_tokens(x), video.spec, tuple(x.shape[3:])
        self.clips, self.frames = t.shape
        self.inputs: dict[str, torch.Tensor] = {}
        self.tables = video.tables(t.flatten())
        self.valid, condition = entries(self.spec.tokens(self.size)), self.spec.condition
        self.parts = [entries(rows) for rows in condition.parts or (condition.tokens,)]
        text_pages = sum(map(len, self.parts))
        shape = (self.spec.layers, 0, self.spec.heads, ROWS, self.spec.head_dim)
        pages = self.clips * self.frames * len(self.valid)
        self.k, self.v = torch.zeros(2, shape[0], pages, *shape[2:], dtype=video.dtype).unbind(0)
        held = (shape[0], self.clips * text_pages, *shape[2:])
        self.text_k, self.text_v = torch.zeros(2, *held, dtype=video.dtype).unbind(0)
        for clip in range(self.clips):
            own = range(clip * text_pages, (clip + 1) * text_pages)
            slots = torch.tensor(condition.slots(own, ROWS))
            video.write_condition(video.condition(text[clip]), slots, self.text_k, self.text_v)

    def pages(self, clip: int, frame: int) -> list[int]:
        first = (clip * self.frames + frame) * len(self.valid)
        return list(range(first, first + len(self.valid)))

    def run(self, frames: range, visible: torch.Tensor) -> torch.Tensor:
        """visible: bool [F, F]. -> [B, frames, C, H, W]"""
        tokens, block = self.spec.tokens(self.size), len(frames)
        seen = [f for f in range(self.frames) if visible[frames.start, f]]
        lists = [[page for f in seen for page in self.pages(clip, f)] for clip in range(self.clips)]
        slots = [
            torch.arange(tokens) + self.pages(clip, f)[0] * ROWS for clip in range(self.clips) for f in frames
        ]
        rows = [1 + clip * self.frames + f for clip in range(self.clips) for f in frames]
        tokens_of = [[tokens] * block] * self.clips
        cells = CellBatch(
            num_contexts=0,
            slots=torch.cat(slots),
            positions=token_positions(torch.tensor(list(frames) * self.clips), *self.spec.grid(self.size)),
            frame_ids=torch.tensor(rows, dtype=torch.int32).repeat_interleave(tokens),
            table=FrameTable.build(tokens_of, lists, [self.valid * len(seen)] * self.clips),
            k_pages=self.k,
            v_pages=self.v,
            conditions=ConditionPages(
                self.text_k,
                self.text_v,
                tuple(self.condition_table(part, tokens_of) for part in range(len(self.parts))),
            ),
        )
        own = slice(frames.start, frames.stop)
        inputs = {name: rows[:, own].flatten(0, 2) for name, rows in self.inputs.items()}
        cells = replace(cells, inputs=inputs)
        x = self.x[:, own].flatten(0, 2).to(self.video.dtype)
        out = self.video(x, cells, self.tables)
        return self.video.from_tokens(out.unflatten(0, (self.clips, block, tokens)), self.size)

    def condition_table(self, part: int, tokens_of: list[list[int]]) -> FrameTable:
        every, first = sum(map(len, self.parts)), sum(map(len, self.parts[:part]))
        own = self.parts[part]
        pages = [list(range(c * every + first, c * every + first + len(own))) for c in range(self.clips)]
        return FrameTable.build(tokens_of, pages, [own] * self.clips)


def blocks_of(visible: torch.Tensor) -> list[range]:
    """Consecutive frames that see the same."""
    starts = [f for f in range(len(visible)) if f == 0 or not torch.equal(visible[f], visible[f - 1])]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(visible)], strict=True)]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", CLIPS)
def test_block_by_block(name: str, native: bool) -> None:
    model, golden, _ = official(name)
    if native:
        model.freeze()
    visible = golden["visible_frames"]
    clips = Clips(model, golden["x"], golden["t"], golden["text"])
    y = torch.cat([clips.run(frames, visible) for frames in blocks_of(visible)], dim=1)
    assert error(y, golden["y"]) <= 1e-5


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("packed", [True, False])
def test_a_prompt_and_a_picture(packed: bool) -> None:
    """Wan 2.1's image-to-video model: CLIP's tokens lie in pages behind the prompt's, and are attended to by
    themselves; the given picture's latents come as frame inputs."""
    model, golden, config = official("x_bidirectional_i2v")
    drawn = np.random.RandomState(int(golden["clip_seed"])).standard_normal((len(golden["x"]), 257, 1280))
    pictures = torch.from_numpy(drawn.astype(np.float32))
    if packed:
        model.freeze()
    x, frames = golden["x"], golden["x"].shape[1]
    t = golden["t"][:, None].expand(x.shape[:2])
    conditions = [model.with_picture(*own) for own in zip(golden["text"], pictures, strict=True)]
    clips = Clips(model, x, t, conditions)
    clips.inputs = {PICTURES: model.to_tokens(golden["y"])}
    y = clips.run(range(frames), torch.ones(frames, frames, dtype=torch.bool))
    assert error(y, golden["y_official"]) <= 1e-5


def test_a_clip_alone_gives_the_same_bits() -> None:
    model, golden, _ = official("clip_causal_c3")
    model.freeze()
    visible, given = golden["visible_frames"], [golden[name] for name in ("x", "t", "text")]
    x, t, text = (torch.cat([part, part.flip(0) * 0.5]) for part in given)
    together, outs = Clips(model, x, t, text), []
    alone = [Clips(model, *(part[i : i + 1] for part in (x, t, text))) for i in range(len(x))]
    for frames in blocks_of(visible):
        outs.append(together.run(frames, visible))
        for clip, single in enumerate(alone):
            assert torch.equal(single.run(frames, visible)[0], outs[-1][clip])


def test_tokens_there_and_back() -> None:
    model = WanTransformer(WanConfig(24, 1, 2, 32, channels=3, out_channels=3, text_dim=8, text_tokens=4))
    x = torch.randn(2, 5, 3, 6, 10)
    tokens = model.to_tokens(x)
    assert tokens.shape == (2, 5, 15, 12) and torch.equal(model.from_tokens(tokens, (6, 10)), x)
    embedded = model.patch_embedding.weight.flatten(1) @ tokens[0, 0].T + model.patch_embedding.bias[:, None]
    assert torch.allclose(embedded.T, model.embedded(x)[0, 0], atol=1e-5)


def test_saved_and_loaded_by_name(tmp_path) -> None:
    model = WanTransformer(WanConfig(24, 1, 2, 32, channels=3, out_channels=3, text_dim=8, text_tokens=4))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, WanTransformer) and again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_what_does_not_fit() -> None:
    small = WanConfig(24, 1, 2, 32, channels=4, out_channels=4, text_dim=8, text_tokens=4)
    video = WanTransformer(small)
    for wrong in (torch.randn(5, 8), torch.randn(3, 7), torch.full((2, 8), torch.nan), 3):
        with pytest.raises(TensorError, match="condition"):
            video.condition(wrong)
    filled = torch.tensor([[1.0], [1.0], [0.0], [0.0]]).expand(4, 8)
    assert torch.equal(video.condition(torch.ones(2, 8)), filled)
    for size in ((4, 5), (3, 4), (0, 4)):
        with pytest.raises(ConfigError, match="size"):
            video.spec.tokens(size)
    sees = WanTransformer(replace(small, image_dim=6, image_tokens=3))
    for prompt, picture in ((torch.ones(5, 8), torch.ones(3, 6)), (torch.ones(2, 8), torch.ones(2, 6))):
        with pytest.raises(TensorError, match="picture"):
            sees.with_picture(prompt, picture)
    with pytest.raises(TensorError, match="picture"):
        video.with_picture(torch.ones(2, 8), torch.ones(3, 6))
    with pytest.raises(TensorError, match="with_picture"):
        sees.condition(torch.ones(4, 8))
    clips = Clips(video, torch.randn(1, 1, 4, 4, 4), torch.zeros(1, 1), torch.randn(1, 4, 8))
    clips.text_k = clips.text_k[:, :0]
    with pytest.raises(PageTableError):
        video.freeze()
        clips.run(range(1), torch.ones(1, 1, dtype=torch.bool))


def cached(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], Clips, dict]:
    """Chunk after chunk at several timesteps, then clean: the outputs, the pages at the end, the numbers."""
    model, golden, _ = official(name)
    model.to(dtype)
    calls = golden["calls"].tolist()
    clips, frames = golden["x_0"].shape[0], max(first + count for first, count in calls)
    model.freeze()
    held = Clips(
        model,
        torch.zeros(clips, frames, *golden["x_0"].shape[2:]),
        torch.zeros(clips, frames),
        golden["text"],
    )
    outs = []
    for number, (first, count) in enumerate(calls):
        own = slice(first, first + count)
        t = torch.zeros(clips, frames)
        t[:, own] = golden[f"t_{number}"]
        held.x[:, own], held.tables = model.to_tokens(golden[f"x_{number}"]), model.tables(t.flatten())
        seen = (torch.arange(frames) < first + count).expand(frames, frames)
        outs.append(held.run(range(first, first + count), seen))
    return outs, held, golden


def stored(pages: torch.Tensor, held: Clips) -> torch.Tensor:
    """Pages [pages, heads, rows, dim] of one layer -> [B, tokens of all frames, heads, dim]"""
    rows = pages.transpose(1, 2).reshape(held.clips, held.frames, -1, pages.shape[1], pages.shape[3])
    return rows[:, :, : held.spec.tokens(held.size)].flatten(1, 2)


@pytest.mark.parametrize("name", ["causal_cached_c1", "causal_cached_c3"])
def test_calls_over_a_cache(name: str) -> None:
    outs, held, golden = cached(name)
    for number, got in enumerate(outs):
        assert error(got, golden[f"y_{number}"]) <= 1e-5, number
    for layer in range(held.spec.layers):
        assert error(stored(held.k[layer], held), golden[f"k_layer{layer}"]) <= 1e-5
        assert error(stored(held.v[layer], held), golden[f"v_layer{layer}"]) <= 1e-5


def test_calls_in_bfloat16() -> None:
    """As far from the official bfloat16 as that is from float32."""
    outs, held, golden = cached("causal_cached_c3", torch.bfloat16)
    _, half, _ = official("x_bf16_causal_cached_c3")
    for number, got in enumerate(outs):
        assert error(got.float(), half[f"y_bf16_{number}"]) <= 2e-2, number
        assert error(got.float(), golden[f"y_{number}"]) <= 2e-2, number
    assert error(stored(held.k[0], held).float(), half["k_layer0_bf16"]) <= 2e-2


@pytest.mark.slow
def test_one_layer_of_full_width() -> None:
    """As wide as the 1.3B model, at its own size of pictures; the inputs are stored as seeds."""

    def drawn(seed: str, *shape: int) -> torch.Tensor:
        normal = np.random.RandomState(int(golden[seed])).standard_normal(shape)
        return torch.from_numpy(normal.astype(np.float32))

    model, golden, config = official("x_full_width_1_3b")
    size = config["H"], config["W"]
    calls = golden["calls"].tolist()
    text = drawn("text_seed", 1, config["text_len"], config["text_dim"])
    text[:, int(golden["text_len_used"]) :] = 0
    model.freeze()
    held = Clips(model, torch.zeros(1, 2, config["in_dim"], *size), torch.zeros(1, 2), text)
    for number, (first, count) in enumerate(calls):
        own = slice(first, first + count)
        held.x[:, own] = model.to_tokens(drawn(f"x_seed_{number}", 1, count, config["in_dim"], *size))
        held.tables = model.tables(torch.full((2,), float(golden[f"t_{number}"])))
        y = held.run(range(first, first + count), torch.ones(2, 2, dtype=torch.bool).tril())
        assert error(y[..., 1::3, ::3], golden[f"y_{number}"]) <= 1e-5
        assert float(y.norm()) == pytest.approx(float(golden[f"y_norm_{number}"]), rel=1e-5)
    for pages, want in ((held.k, "k_last_tokens"), (held.v, "v_last_tokens")):
        assert error(stored(pages[0], held)[:, -4:], golden[want]) <= 1e-5
