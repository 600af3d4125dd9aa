# SPDX-License-Identifier: Apache-2.0
"""What networks take for every frame beside its latents: actions of a network that is not ours, and the given
pictures of Wan's image-to-video models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from inside import inside
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import ops, plan
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.frame_inputs import FrameInputs
from ardiff_engine.errors import ArdiffError, ConfigError, NumericalError, TensorError
from ardiff_engine.memory import Full, MemoryPolicy, RecomputedWindow, Window
from ardiff_engine.models import CellBatch, Footprint, FrameInput, ModelSpec, Tables, VideoModel
from ardiff_engine.models.wan import WanConfig, WanTransformer

STEPS, TOKENS, CHANNELS = 3, 4, 16
SCHEDULE = ade.NoiseSchedule.sqrt_linear()
SOLVER = ade.solvers.DDIM(SCHEDULE, num_inference_steps=STEPS)
PUSH = torch.randn(2, CHANNELS, generator=torch.Generator().manual_seed(0))


class ActionVideo(VideoModel):
    """A frame becomes the mean of what it sees, where each frame counts with what its action [2] adds to it;
    a wind [CHANNELS] for every token blows over its own."""

    device, dtype = torch.device("cpu"), torch.float32
    spec = ModelSpec(
        num_frames=8,
        tokens_per_frame=TOKENS,
        channels=CHANNELS,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=CHANNELS,
        frame_inputs=(FrameInput("action", 2), FrameInput("wind", CHANNELS, places=True)),
    )

    def tables(self, timesteps: torch.Tensor) -> Tables:
        weight = 1 - timesteps / 1000
        return Tables((torch.cat([weight.new_ones(1), weight])[:, None, None],))

    def condition(self, given):
        return torch.empty(0)

    def null_condition(self):
        return torch.empty(0)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        return Footprint(weights=0, tables=4 * (timesteps + 1), workspace=4 * tokens * 48)

    def __call__(self, x: torch.Tensor, cells: CellBatch, tables: Tables, condition) -> torch.Tensor:
        k_pages, v_pages = cells.k_pages[0], cells.v_pages[0]
        # Row by row: a product of many rows may round otherwise than one of few.
        action = cells.inputs["action"]
        pushed = x + action[:, :1] * PUSH[0] + action[:, 1:] * PUSH[1]
        nothing = torch.zeros_like(x)
        qkv = torch.cat([nothing, nothing, pushed], dim=1)
        q = ops.norm_rope_write_(
            qkv, k_pages, v_pages, cells.slots, cells.positions[:, 0].contiguous(), heads=1
        )
        mean = ops.frame_attention(q, k_pages, v_pages, cells.table).flatten(1)
        return mean * tables.parts[0][cells.frame_ids, 0] + cells.inputs["wind"]


def actions(frames: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wind = 0.1 * torch.randn(frames, TOKENS, CHANNELS, generator=generator)
    return {"action": torch.randn(frames, 2, generator=generator), "wind": wind}


def engine_of(memory: MemoryPolicy | None = None, **options) -> Engine:
    return Engine(ActionVideo(), solver=SOLVER, memory=memory or Full(), max_pages=128, **options)


def expected(
    noise: torch.Tensor, given: dict[str, torch.Tensor], lag: int, window: int, prefix: int
) -> torch.Tensor:
    """The same by hand, in float64: noise [F, tokens, channels], of which `prefix` frames are clean ones."""
    x, push = noise.double(), given["action"].double() @ PUSH.double()
    level = [STEPS] * prefix + [0] * (len(x) - prefix)
    for tick in range(STEPS + lag * (len(x) - prefix - 1)):
        before = x.clone()
        for f in range(prefix, len(x)):
            if (f - prefix) * lag > tick or level[f] == STEPS:
                continue
            seen = range(max(0, f - window + 1), f + 1)
            mean = torch.stack([before[s] + push[s] for s in seen]).flatten(0, 1).mean(0)
            x0 = mean * (1 - SOLVER.timesteps[level[f]] / 1000) + given["wind"][f].double()
            p, q, a, b = SOLVER.coefficients[level[f], :4]
            x[f] = a * before[f] + b * (p * before[f] + q * x0)
            level[f] += 1
    return x


def noise_of(frames: int) -> torch.Tensor:
    return torch.randn(frames, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize(
    ("memory", "window", "lag"), [(Full(), 7, 2), (Window(3), 3, 2), (RecomputedWindow(4), 4, STEPS)]
)
@pytest.mark.parametrize("says", ["tensors", "functions"])
def test_actions_act_on_their_frames(
    memory: MemoryPolicy, window: int, lag: int, prefix: int, says: str, cuda_graphs: bool
) -> None:
    """Also on those that are given and only stored."""
    given, noise = actions(7), noise_of(7)
    inputs = given if says == "tensors" else {name: rows.__getitem__ for name, rows in given.items()}
    engine = engine_of(memory, cuda_graphs=cuda_graphs)
    request = Request(
        7, lag=lag, latents=noise[prefix:], prefix=noise[:prefix] if prefix else None, frame_inputs=inputs
    )
    got = engine.submit(request).result()
    want = expected(noise, given, lag, window, prefix)
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_alone_and_together_are_the_same_bits() -> None:
    requests = [
        Request(5, lag=1, seed=1, frame_inputs=actions(5, 1)),
        Request(6, lag=3, seed=2, frame_inputs=actions(6, 2), guidance_scale=2.0),
        Request(
            4, lag=0, seed=3, frame_inputs=actions(4, 3), branches=[ade.Branch(), ade.Branch(writes=False)]
        ),
    ]
    alone = [engine_of().submit(request).result() for request in requests]
    for cuda_graphs in (False, True):
        engine = engine_of(cuda_graphs=cuda_graphs)
        streams = [engine.submit(request) for request in requests]
        assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))


def test_actions_arrive_while_an_endless_video_runs() -> None:
    """What comes in time for a frame is as good as what was known from the start."""
    given = actions(9)
    known = engine_of().submit(Request(6, lag=STEPS, seed=1, frame_inputs=given)).result()
    asked: list[int] = []

    def action(frame: int) -> list[float]:
        asked.append(frame)
        return given["action"][frame].tolist()

    still = given | {"action": lambda frame: torch.zeros(2)}
    inputs = {"action": action, "wind": lambda frame: given["wind"][frame]}
    engine = engine_of(Window(8))
    stream = engine.submit(Request(None, lag=STEPS, seed=1, frame_inputs=inputs, max_ahead=1))
    frames = iter(stream)
    latents = [next(frames).latent for _ in range(3)]
    assert asked == list(range(len(asked))) and len(asked) <= 4  # as late as can be
    receipt = stream.set_frame_inputs({"action": still["action"]})
    first = receipt.first_frame
    assert first == inside(stream).feeder.oldest_unfinished and receipt.effect == "keep"
    latents += [next(frames).latent for _ in range(3)]
    changed = {"action": given["action"].clone(), "wind": given["wind"]}
    changed["action"][first:] = 0
    want = engine_of().submit(Request(6, lag=STEPS, seed=1, frame_inputs=changed)).result()
    assert torch.equal(torch.stack(latents[:first]), known[:first])
    assert torch.equal(torch.stack(latents), want) and not torch.equal(want, known)


@pytest.mark.parametrize("lag", [STEPS, 1])
def test_inputs_of_frames_that_start_later_are_as_good_as_known_ones(lag: int) -> None:
    """Said at any tick: each frame has what held when it started. A fork from before does not notice."""
    given = actions(7)
    for ticks in (0, 1, STEPS, STEPS + 2):
        stream = engine_of().submit(Request(7, lag=lag, seed=1, frame_inputs=given, max_ahead=7))
        stream.engine.step(1)
        for _ in range(ticks):
            stream.engine.step(1)
        fork, moved_next = stream.fork(), max(stream.levels)
        first = stream.set_frame_inputs({"action": lambda frame: [3.0, 0.0]}, in_flight=False).first_frame
        assert first in (moved_next, moved_next + 1), "the coming tick may start one"
        changed = given | {"action": given["action"].clone()}
        changed["action"][first:] = torch.tensor([3.0, 0.0])
        want = engine_of().submit(Request(7, lag=lag, seed=1, frame_inputs=changed)).result()
        plain = engine_of().submit(Request(7, lag=lag, seed=1, frame_inputs=given)).result()
        assert torch.equal(stream.result(), want) and torch.equal(fork.result(), plain)
        assert not torch.equal(want, plain)


@pytest.mark.parametrize("memory", [Full(), Window(3)])
def test_frames_that_are_stored_anew_have_what_they_were_made_with(memory: MemoryPolicy) -> None:
    """Going back over what has left the window feeds frames before it again. What was said last holds from
    there on."""
    given = actions(12)
    stream = engine_of(memory).submit(Request(12, lag=STEPS, seed=1, frame_inputs=given))
    for ready, said in ((2, torch.ones(12, 2)), (9, torch.zeros(12, 2))):
        while stream.frames_ready < ready:
            stream.engine.step(1)
        assert stream.set_frame_inputs({"action": said}, in_flight=False).first_frame == ready
    feeder = inside(stream).feeder
    assert bool(feeder.missing(feeder.plan.continued(5))) == (memory == Window(3))
    stream.rollback(5)
    changed = given | {"action": given["action"].clone()}
    changed["action"][2:], changed["action"][5:] = 1, 0
    want = engine_of(memory).submit(Request(12, lag=STEPS, seed=1, frame_inputs=changed)).result()
    torch.testing.assert_close(stream.result(), want, rtol=1e-5, atol=1e-5)


def test_forks_rollbacks_and_extensions_have_them_too() -> None:
    given, engine = actions(8), engine_of()
    want = engine_of().submit(Request(8, lag=STEPS, seed=1, frame_inputs=given)).result()
    stream = engine.submit(Request(6, lag=STEPS, seed=1, frame_inputs=given))
    for _ in range(STEPS + 1):
        engine.step(1)
    with pytest.raises(TensorError, match="8 frames"):
        stream.extend(3)
    stream.extend(2)
    fork, other = stream.fork(), stream.fork()
    other.set_frame_inputs({"action": torch.zeros(8, 2)})
    engine.step(1)
    stream.rollback(1)
    assert torch.equal(fork.result(), want)
    torch.testing.assert_close(stream.result(), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other.result(), want, atol=1e-3)


def test_a_suspended_stream_leaves_no_inputs_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    given, places = actions(4), []
    want = engine_of().submit(Request(4, lag=1, seed=1, frame_inputs=given)).result()
    asked = given | {"action": lambda frame: given["action"][frame]}
    stream = engine_of().submit(Request(4, lag=1, seed=1, frame_inputs=asked))
    stream.engine.step(1)
    elsewhere = inside(stream).inputs.moved("meta")
    assert elsewhere.of(0)[0].is_meta and not inside(stream).inputs.of(0)[0].is_meta
    elsewhere.drop_from(0)
    elsewhere.fetch([0])  # the tensor of the user has moved, the function is asked again
    assert sorted(row.is_meta for row in elsewhere.of(0)) == [False, True]
    moved = FrameInputs.moved
    monkeypatch.setattr(FrameInputs, "moved", lambda own, device: places.append(device) or moved(own, device))
    stream.suspend()
    stream.resume()
    assert places == ["cpu", torch.device("cpu")] and torch.equal(stream.result(), want)


def test_after_going_back_functions_are_asked_again() -> None:
    given, asked = actions(4), []

    def action(frame: int) -> torch.Tensor:
        asked.append(frame)
        return given["action"][frame] + asked.count(frame) - 1

    stream = engine_of().submit(Request(4, lag=STEPS, seed=1, frame_inputs=given | {"action": action}))
    while stream.frames_ready < 2:
        stream.engine.step(1)
    stream.rollback(1)
    result = stream.result()
    assert [asked.count(frame) for frame in range(4)][:2] == [1, 2]
    again = given | {"action": given["action"].clone()}
    again["action"] += torch.tensor([asked.count(frame) - 1 for frame in range(4)])[:, None]
    want = engine_of().submit(Request(4, lag=STEPS, seed=1, frame_inputs=again)).result()
    torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5)


def without(name: str) -> dict[str, torch.Tensor]:
    return {other: rows for other, rows in actions(4).items() if other != name}


@pytest.mark.parametrize(
    ("kind", "inputs", "frames"),
    [
        (ConfigError, None, 4),
        (ConfigError, without("wind"), 4),
        (ConfigError, actions(4) | {"jump": torch.zeros(4, 1)}, 4),
        (ConfigError, [actions(4)], 4),
        (TensorError, actions(3), 4),
        (TensorError, actions(4), None),
        (TensorError, actions(4) | {"action": torch.zeros(4, 3)}, 4),
        (TensorError, actions(4) | {"wind": torch.zeros(4, CHANNELS)}, 4),
        (TensorError, actions(4) | {"action": "left"}, 4),
        (NumericalError, actions(4) | {"action": torch.full((4, 2), torch.nan)}, 4),
    ],
)
def test_inputs_that_do_not_fit_take_nothing(kind: type[ArdiffError], inputs, frames: int | None) -> None:
    engine = engine_of(Window(4))
    with pytest.raises(kind, match="frame_inputs"):
        engine.submit(Request(frames, lag=1, frame_inputs=inputs))
    assert engine.stats().pages_promised == 0
    with pytest.raises(ConfigError, match="frame_inputs"):
        Engine(tiny(), solver=SOLVER).submit(Request(4, lag=1, frame_inputs=actions(4)))


@pytest.mark.parametrize(
    "wrong", [lambda frame: torch.zeros(3), lambda frame: [0.0, float("inf")], lambda frame: 1 // 0]
)
def test_a_function_that_fails_ends_its_stream_alone(wrong: Callable) -> None:
    engine, given = engine_of(), actions(5)
    good = engine.submit(Request(5, lag=1, seed=1, frame_inputs=given))
    late = lambda frame: given["action"][frame] if frame < 2 else wrong(frame)  # noqa: E731
    bad = engine.submit(Request(5, lag=1, seed=1, frame_inputs=given | {"action": late}))
    with pytest.raises(ArdiffError):
        bad.result()
    assert torch.equal(
        good.result(), engine_of().submit(Request(5, lag=1, seed=1, frame_inputs=given)).result()
    )


def test_names_must_differ() -> None:
    class Twice(ActionVideo):
        spec = replace(ActionVideo.spec, frame_inputs=(FrameInput("action", 2),) * 2)

    with pytest.raises(ConfigError, match="differ"):
        Engine(Twice(), solver=SOLVER)


# --- Wan's image-to-video models

WAN = WanConfig(48, 2, 2, 64, channels=8, out_channels=3, text_dim=10, text_tokens=20)


def wan() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(WAN).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize("cuda_graphs", [False, True])
@torch.no_grad()
def test_given_pictures_stand_beside_the_latents(cuda_graphs: bool) -> None:
    """The plain loop over whole clips under the block's mask; two sizes of frames in one pass."""
    model, generator = wan(), torch.Generator().manual_seed(5)
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=3.0), STEPS)
    sigmas = [*(solver.timesteps[:STEPS] / 1000).tolist(), 0.0]
    engine = Engine(model, solver=solver, memory=Full(), max_pages=400, cuda_graphs=cuda_graphs)
    text = torch.randn(20, 10, generator=generator)
    clips, streams = [], []
    for size in ((4, 6), (6, 4), (2, 4)):
        noise = torch.randn(4, 3, *size, generator=generator)
        pictures = torch.randn(4, 5, *size, generator=generator)
        clips.append((noise, pictures))
        streams.append(
            engine.submit(
                Request(
                    4,
                    size=size,
                    plan=plan.blocks(2),
                    condition=text,
                    latents=noise,
                    frame_inputs={"pictures": pictures},
                )
            )
        )
    for (noise, pictures), stream in zip(clips, streams, strict=True):
        clip = noise.clone()
        for start in (0, 2):
            t = torch.full((1, start + 2), float(solver.timesteps[STEPS]))
            for step in range(STEPS):
                t[0, start:] = float(solver.timesteps[step])
                x = torch.cat([clip, pictures], dim=1)[None, : start + 2]
                flow = model.forward_clip(x, t, text[None], block=2)[0, start:]
                clip[start : start + 2] += (sigmas[step + 1] - sigmas[step]) * flow
        assert float((stream.result() - clip).norm() / clip.norm()) < 1e-5
    with pytest.raises(TensorError, match="pictures"):
        engine.submit(Request(4, size=(4, 6), frame_inputs={"pictures": clips[1][1]}))
