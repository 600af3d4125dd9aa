# SPDX-License-Identifier: Apache-2.0
"""The engine that a pipeline keeps: when it is the same one, when another, and that it holds nothing back."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.errors import ArdiffError, ConfigError, EngineBusyError, OutOfPagesError, TensorError

OPTIONS = {"num_frames": 10, "num_inference_steps": 4, "lag": 2}
CALL = OPTIONS | {"progress": False, "seed": 3}


@pytest.fixture
def pipe(tiny_model) -> ade.Pipeline:
    return ade.Pipeline.from_pretrained(tiny_model)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ade.Engine]:
    """All engines that are built in the test."""
    engines: list[ade.Engine] = []
    init = ade.Engine.__init__

    def noted(self: ade.Engine, *args: object, **options: object) -> None:
        init(self, *args, **options)  # type: ignore[arg-type]
        engines.append(self)

    monkeypatch.setattr(ade.Engine, "__init__", noted)
    return engines


def held(engine: ade.Engine) -> tuple[int, int]:
    stats = engine.stats()
    return stats.pages_held, stats.pages_promised


def test_calls_and_streams_of_any_solver_and_memory_share_one(pipe, built):
    first = pipe(num_videos=2, **CALL)
    again = pipe(num_videos=2, **CALL)
    other = pipe(**CALL | {"num_inference_steps": 3}, eta=0.5, memory=ade.memory.RecomputedWindow(4))
    streamed = [frame.latent for frame in pipe.stream(seed=3, **OPTIONS)]
    assert len(built) == 1 and held(built[0]) == (0, 0)
    assert torch.equal(again.latents, first.latents) and torch.equal(again.frames, first.frames)
    assert torch.equal(torch.stack(streamed), first.latents[0])
    assert not torch.equal(other.latents[0], first.latents[0])
    # A call reports its own work, not that of the calls before.
    assert (first.stats.frames, again.stats.frames, other.stats.frames) == (20, 20, 10)
    assert again.stats.passes == first.stats.passes and again.stats.streams_finished == 2
    assert again.stats.cells_per_pass == first.stats.cells_per_pass


def test_it_grows_with_what_is_needed_and_does_not_shrink(pipe, built):
    pipe(**CALL)
    pipe(num_videos=3, **CALL)
    pipe(**CALL)
    pages = [engine.stats().pages_total for engine in built]
    assert len(pages) == 2 and pages[1] == 3 * pages[0]


def test_what_is_begun_while_another_stream_holds_the_pages(pipe, built):
    """It gets an engine with room for both, and the other stream goes on where it is, to the same frames."""
    expected = pipe(**CALL).latents[0]
    frames = pipe.stream(seed=3, **OPTIONS)
    begun = [next(frames).latent]
    assert torch.equal(pipe(**CALL).latents[0], expected)
    assert len(built) == 2 and built[1].stats().pages_total == 2 * built[0].stats().pages_total
    assert torch.equal(torch.stack([*begun, *(frame.latent for frame in frames)]), expected)
    two = [pipe.stream(seed=3, **OPTIONS) for _ in range(2)]
    for one, other in zip(*two, strict=True):
        assert torch.equal(one.latent, other.latent)
    assert len(built) == 2 and [held(engine) for engine in built] == [(0, 0)] * 2


@pytest.mark.parametrize("end", ["break", "drop", "unread", "failing", "refused"])
def test_pages_come_back_however_it_ends(pipe, built, end):
    pipe(num_videos=2, **CALL)
    if end == "break":
        for _ in pipe.stream(**OPTIONS):
            break
    elif end == "drop":
        frames = pipe.stream(**OPTIONS | {"num_frames": None})
        next(frames)
        del frames
    elif end == "unread":
        pipe.stream(**OPTIONS)
    elif end == "failing":

        def explode(info: object) -> None:
            raise KeyError(info)

        with pytest.raises(ArdiffError):
            pipe(num_videos=2, callback_on_step_end=explode, **CALL)
    else:
        with pytest.raises(TensorError):
            pipe(num_videos=2, class_id=[0, 99], **CALL)  # the first is admitted, the second is not
    gc.collect()
    assert held(built[0]) == (0, 0)
    pipe(num_videos=2, **CALL)
    assert len(built) == 1


def change_a_weight(pipe: ade.Pipeline) -> None:
    with torch.no_grad():
        next(pipe.transformer.parameters()).mul_(1.5)


def load_weights(pipe: ade.Pipeline) -> None:
    state = {name: 1.1 * value for name, value in pipe.transformer.state_dict().items()}
    pipe.transformer.load_state_dict(state)


def replace_a_layer(pipe: ade.Pipeline) -> None:
    mlp = pipe.transformer.blocks[0].mlp
    mlp.fc1 = copy.deepcopy(mlp.fc1)
    with torch.no_grad():
        mlp.fc1.weight.neg_()


@pytest.mark.parametrize("change", [change_a_weight, load_weights, replace_a_layer])
def test_changed_weights_are_used(pipe, built, change):
    before = pipe(**CALL).latents
    change(pipe)
    after = pipe(**CALL).latents
    assert len(built) == 2 and not torch.equal(before, after)
    fresh = ade.Pipeline(pipe.transformer, pipe.vae, pipe.schedule, pipe.prediction)
    assert torch.equal(fresh(**CALL).latents, after)


def test_moving_gives_it_back(pipe, built):
    pipe(**CALL)
    pipe.to(torch.bfloat16)
    pipe(**CALL)
    assert len(built) == 2 and built[1].pool.k.dtype == torch.bfloat16


def test_a_call_in_a_callback_is_refused_and_leaves_everything_right(pipe, built):
    """As for every engine: a pass cannot run within another one."""
    expected = pipe(num_videos=2, **CALL).latents[:1]
    with pytest.raises(EngineBusyError):
        pipe(callback_on_step_end=lambda info: pipe(**CALL), **CALL)
    assert held(built[0]) == (0, 0)
    assert torch.equal(pipe(**CALL).latents, expected)


def test_pages_that_the_memory_has_not_are_refused_with_the_numbers(pipe, built, monkeypatch):
    expected = pipe(**CALL).latents
    monkeypatch.setattr("ardiff_engine.device.available_memory", lambda: 1000)
    assert torch.equal(pipe(**CALL).latents, expected)
    with pytest.raises(OutOfPagesError, match="GiB are free"):
        pipe(num_videos=4, **CALL)
    monkeypatch.undo()
    assert torch.equal(pipe(**CALL).latents, expected)


def test_mistakes_build_none(pipe, built):
    with pytest.raises(ConfigError):
        pipe(**CALL | {"lag": 0})
    with pytest.raises(ConfigError):
        pipe.stream(**OPTIONS | {"lag": 0})
    assert not built
