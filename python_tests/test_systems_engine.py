# SPDX-License-Identifier: Apache-2.0
"""Systems on the engine: a stream of each that shares the network, all in one pass, each alone, and each
against a plain loop over its passes in float64."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_ar_diffusion import tiny

import ardiff_engine as ade
from ardiff_engine import systems
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory import Full, Recached, Restarted, Shots, Window
from ardiff_engine.models.agreement import check_spec
from ardiff_engine.models.wan import WanConfig, WanTransformer
from ardiff_engine.models.wan.layers import dense_attention
from ardiff_engine.models.wan.positions import rotated, rotation, token_positions
from ardiff_engine.plan import blocks
from ardiff_engine.systems import System, forcing_kv
from ardiff_engine.systems.calls import Cell

CONFIG = WanConfig(48, 2, 2, 64, channels=3, out_channels=3, text_dim=10, text_tokens=8)
LENGTHS = {
    "diagonal-distillation": 18,
    "longlive": 18,
    "longlive2": 16,
    "knot-forcing": 13,
    "magi-1": 4,
    "mmpl": 21,
    "pusa": 21,
    "skyreels-v2-causal": 10,
    "epona": 13,
    "rolling-forcing": 27,
    "soulx-liveact": 22,
    "streamdiffusion-v2": 8,
    "streamdiffusion-v2, four steps": 10,
}
"""Frames where nine are too few to leave a window, or not whole blocks."""

LONGLIVE = systems.get("longlive")
SERVED = [own for own in map(systems.get, systems.names()) if not own.not_served]
CASES: dict[str, System] = {own.name: own for own in SERVED} | {
    "forcing-kv": replace(
        systems.get("forcing-kv"), memory=forcing_kv.memory_of([[True, False]] * 2, segments=2)
    ),
    "longlive, a new prompt": replace(
        LONGLIVE, memory=Recached(Window(3, sink=1), prompts=(6,), keeps_sink=False)
    ),
    "longlive2, a cut": replace(LONGLIVE, memory=Shots(Window(3, sink=1), starts=(6,), pin=3, offset=8)),
    "streamdiffusion-v2, four steps": replace(
        systems.get("streamdiffusion-v2"),
        solver=ade.solvers.Renoise(ade.FlowSchedule(8.0), [700, 600, 500, 400]),
    ),
    "infinity-rope, a cut": replace(
        systems.get("infinity-rope"), memory=Shots(Window(5, sink=1), (6,), positions="window", hard=(6,))
    ),
}


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.7 * parameter[0].numel() ** -0.5)
    return model


SMALLER_LAGS = {"skyreels-v2": 1, "skyreels-v2-causal": 5}
"""Systems whose lag is more than a few steps, by the size of their blocks."""


def short(system: System) -> System:
    """The same with few steps, where a solver takes any number, and no greater lag."""
    if system.name in SMALLER_LAGS:
        system = replace(system, plan=blocks(SMALLER_LAGS[system.name], lag=2))
    many = len(system.tracks[0].coefficients) > 20
    free, long = (
        (ade.solvers.UniPC, ade.solvers.DDIM, ade.solvers.DPMSolver),
        (ade.solvers.DDPM, ade.solvers.Euler),
    )
    if isinstance(system.solver, free) or (many and isinstance(system.solver, long)):
        return replace(system, solver=replace(system.solver, num_inference_steps=3))
    if isinstance(system.solver, ade.solvers.Table):  # its last steps, none of which looks back or draws
        rows = system.solver.coefficients[-3:].clone()
        rows[:, 4:8] = 0
        own = ade.solvers.Table(system.solver.timesteps[-4:].tolist(), rows, system.solver.waiting)
        return replace(system, solver=own)
    if isinstance(system.solver, ade.solvers.RisingEuler):
        return replace(system, solver=ade.solvers.RisingEuler([0.0, 0.2, 0.4, 0.7, 1.0]))
    return system


def request(name: str, seed: int) -> ade.Request:
    system = short(CASES[name])
    frames = LENGTHS.get(name, 9)
    prefix = None
    if system.given_frames:
        prefix = torch.randn(system.given_frames, 3, 2, 4, generator=torch.Generator().manual_seed(9))
    condition = torch.randn(5, 10, generator=torch.Generator().manual_seed(seed))
    return system.request(
        ade.Request(num_frames=frames, size=(2, 4), condition=condition, seed=seed, prefix=prefix)
    )


def engine(model: WanTransformer, pages: int) -> ade.Engine:
    return ade.Engine(model, solver=ade.solvers.Euler(ade.FlowSchedule(5.0), 2), max_pages=pages)


def served(model: WanTransformer) -> list[str]:
    fit = []
    for name, system in CASES.items():
        try:
            system.check(model.spec, LENGTHS.get(name, 9))
            fit.append(name)
        except ConfigError:
            continue
    return fit


def test_alone_is_batched_to_the_bit(model: WanTransformer) -> None:
    """One pass serves all of them: a pass of plans, memories, solvers, copies and places of every kind."""
    names = served(model)
    assert len(names) == len(CASES)
    together = engine(model, 4000)
    streams = [together.submit(request(name, seed)) for seed, name in enumerate(names)]
    while together.step():
        pass
    for seed, (name, stream) in enumerate(zip(names, streams, strict=True)):
        alone = engine(model, 1000).submit(request(name, seed)).result()
        assert torch.isfinite(alone).all(), name
        assert torch.equal(stream.result(), alone), name


def test_guidance_of_the_release_comes_with_a_negative_prompt() -> None:
    wan = systems.get("wan")
    text = torch.zeros(3, 10)
    assert wan.request(ade.Request(condition=text)).guidance_scale == 1.0
    assert wan.request(ade.Request(condition=text, negative_condition=text)).guidance_scale == wan.guidance
    own = ade.Request(condition=text, negative_condition=text, guidance_scale=3.0)
    assert wan.request(own).guidance_scale == 3.0


def test_the_noise_of_a_system_is_that_of_its_requests(model: WanTransformer) -> None:
    """Rescheduled noise comes again: with a network that does nothing, so do the frames. A request with noise
    of its own keeps it."""
    system = systems.from_spec({"system": "freenoise", "window": 4, "stride": 2, "seed": 0, "frames": 8})
    asked = ade.Request(num_frames=8, size=(2, 4), condition=torch.zeros(5, 10), seed=3)
    sources = [system.noise.source(frame) for frame in range(8)]
    assert len(set(sources)) == 4
    euler = ade.solvers.Table([1.0, 0.0], torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0, 1e9]]), waiting=1.0)
    idle = replace(system, solver=euler)
    made = engine(model, 100).submit(idle.request(asked)).result()
    for frame, source in enumerate(sources):
        assert torch.equal(made[frame], made[source])
    assert not torch.equal(made[0], made[1])
    own = replace(asked, noise=ade.noise.Iid())
    assert idle.request(own).noise is own.noise
    assert idle.request(replace(asked, latents=torch.zeros(8, 3, 2, 4))).noise is None


def test_magi_is_guided_by_three_branches(model: WanTransformer) -> None:
    """Without a past the branches of the negative prompt are one; from t = 0.3 on only the past counts."""
    magi, text, negative = systems.get("magi-1"), torch.randn(5, 10), torch.randn(5, 10)
    asked = ade.Request(num_frames=4, size=(2, 4), condition=text, negative_condition=negative, seed=3)
    branches = magi.request(asked).branches
    assert branches is not None
    assert [own.writes for own in branches] == [False, True, False]
    weights = torch.tensor([own.weights([64]) for own in branches])
    assert torch.equal(weights[:, 0], torch.tensor([7.5, -6.0, -0.5]))
    assert torch.equal(weights[:, -1], torch.tensor([0.0, 1.0, 0.0]))
    guided = [t < 0.3 for t in magi.tracks[0].timesteps[:-1].tolist()]
    assert (weights[0] > 0).tolist() == guided
    assert magi.request(replace(asked, guidance_scale=2.0)).branches is None
    few = systems.from_spec(
        {"system": "magi-1", "chunks": 3, "steps": 4, "window": 2, "chunk_frames": 6, "shift": 3.0}
        | {"given_pixel_frames": 0, "shortcut": False, "all_history": False}
    )
    made = engine(model, 1000).submit(few.request(replace(asked, num_frames=3))).result()
    alone = replace(asked, num_frames=3, condition=negative, negative_condition=None)
    plain = engine(model, 1000).submit(few.request(alone)).result()
    assert torch.isfinite(made).all() and not torch.equal(made, plain)
    same = few.request(replace(asked, num_frames=3, condition=negative))
    first = engine(model, 1000).submit(same).result()[0]
    torch.testing.assert_close(first, plain[0], rtol=1e-3, atol=1e-3)


CANNOT = [
    ("longlive", {"movable": False}, "positions"),  # absolute positions
    ("self-forcing", {"forgets": False}, "forget"),  # no history: later frames change K/V of earlier ones
    ("hiar", {"forgets": False}, "forget"),
    ("infinity-rope", {"frame_angles": None}, "frame_angles"),  # positions that do not move
    ("rolling-forcing", {"frame_angles": None}, "frame_angles"),
    ("soulx-liveact", {"grid_angles": None}, "grid_angles"),
    ("forcing-kv", {"views_per_head": False}, "heads"),
    ("forcing-kv", {"views_per_layer": False}, "one view"),
]


@pytest.mark.parametrize(("name", "facts", "noun"), CANNOT)
def test_a_network_that_cannot_run_a_system_is_refused(
    model: WanTransformer, name: str, facts: dict, noun: str
) -> None:
    """With the reason, and before anything is made."""
    system = CASES[name]
    system.check(model.spec, LENGTHS.get(name))
    with pytest.raises(ConfigError, match=noun):
        system.check(replace(model.spec, **facts), LENGTHS.get(name))


def test_a_joint_condition_that_sees_frames_leaves_no_history() -> None:
    """Its tokens carry later frames back to earlier ones: whole windows can be served, and nothing stored."""
    spec = tiny("separate_norm", "video_temporal_causal", "rope").spec
    assert spec.condition.kind == "joint" and spec.condition_sees_frames
    for name in ("self-forcing", "longlive", "hiar-pipelined", "streamdiffusion-v2", "magi-1"):
        with pytest.raises(ConfigError, match="forget"):
            systems.get(name).check(spec, LENGTHS.get(name, 9))
    systems.get("wan").check(tiny("separate_norm", "none", "rope").spec, 9)
    told = replace(spec, forgets=True)
    with pytest.raises(ConfigError, match="condition_sees_frames"):
        check_spec(told)


class PlainLoop:
    """The passes of a system in float64, with K/V in a dictionary and attention over what a view lists."""

    def __init__(self, model: WanTransformer, text: torch.Tensor, size: tuple[int, int]) -> None:
        self.model, self.size = deepcopy(model).double(), size
        self.prompt = self.model.prompt_rows(text[None].double())
        self.held: list[dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]] = [{} for _ in model.blocks]

    def rotated(self, x: torch.Tensor, place: int) -> torch.Tensor:
        positions = token_positions(torch.tensor([place]), *self.size)
        return rotated(x, *rotation(positions, self.model.config.head_dim))

    def network(self, cells: list[Cell], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x [cells, C, H, W], t [cells] -> the same shape as x."""
        h, (embedding, time) = self.model.embedded(x[None]), self.model.time_rows(t[None, :, None])
        for layer, held in zip(self.model.blocks, self.held, strict=True):

            def attend(q, k, v, held=held):
                split = [t.unflatten(1, (len(cells), -1)) for t in (q, k, v)]
                for i, cell in enumerate(cells):
                    held[cell.frame, cell.copy] = (split[1][:, i], split[2][:, i])
                return torch.cat([self.seen(cell, split[0][:, i], held) for i, cell in enumerate(cells)], 1)

            h = layer(h, time, attend, self.prompt, None)
        return self.model.unpatched(self.model.head(h, embedding), *self.size)[0]

    def seen(self, cell: Cell, q: torch.Tensor, held: dict) -> torch.Tensor:
        keys, values, own = [], [], None
        for run in cell.view:
            for frame in range(run.first, run.stop):
                k, v = held[frame, run.copy]
                keys.append(self.rotated(k, frame + run.shift))
                values.append(v)
                own = run.shift if (frame, run.copy) == (cell.frame, cell.copy) else own
        q = self.rotated(q, cell.frame + own)
        return dense_attention(q, torch.cat(keys, 1), torch.cat(values, 1))

    def run(self, system: System, x: torch.Tensor) -> torch.Tensor:
        """x [F, C, H, W]: noise, and clean given frames."""
        x, past = x.double(), {}
        walk = replace(system, calls_of=lambda plan, walk: walk).calls(len(x))
        told = [(*own.timesteps.tolist(), own.waiting_timestep) for own in system.tracks]
        for cells in walk:
            tracks = system.tracks
            t = torch.tensor([told[cell.track][cell.level] for cell in cells])
            out = self.network(cells, x[[cell.frame for cell in cells]], t.double())
            for cell, own in zip(cells, out, strict=True):
                if cell.updates:
                    row = tracks[cell.track].coefficients[cell.level].tolist()
                    p, q, a, b, _, *weights, _ = row
                    x0 = p * x[cell.frame] + q * own
                    before = past.setdefault(cell.frame, [])
                    x[cell.frame] = a * x[cell.frame] + b * x0
                    x[cell.frame] += sum(c * h for c, h in zip(weights, before, strict=False))
                    before.insert(0, x0)
        return x


def without_noise(solver: ade.diffusion.solvers.Solver) -> ade.diffusion.solvers.Solver:
    if isinstance(solver, ade.solvers.DDPM):
        return ade.solvers.DDIM(solver.schedule, solver.num_steps, prediction=solver.prediction)
    if not isinstance(solver, ade.solvers.Renoise):
        return solver
    return ade.solvers.Euler(solver.schedule, steps=solver.steps)


# A trace shows the widest view of a layer, and the frames that are in a merged one: heads that see less are
# in test_views_per_layer and test_segments, merged frames in test_merged.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"forcing-kv", "soulx-liveact"}))
@torch.no_grad()
def test_the_engine_does_what_the_trace_says(model: WanTransformer, name: str) -> None:
    system = short(CASES[name])
    system = replace(system, solver=tuple(map(without_noise, system.tracks)))
    frames, size = LENGTHS.get(name, 9), (2, 4)
    x = torch.randn(frames, 3, *size, generator=torch.Generator().manual_seed(1))
    text = torch.randn(5, 10, generator=torch.Generator().manual_seed(2))
    given = system.given_frames
    asked = ade.Request(
        num_frames=frames, size=size, condition=text, latents=x[given:], prefix=x[:given] if given else None
    )
    found = engine(model, 1000).submit(system.request(asked)).result()
    expected = PlainLoop(model, text, (1, 2)).run(system, x)
    # Where eps is predicted, latents are divided by √ᾱ, and reach hundreds.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_wan_is_the_plain_loop_over_whole_clips(model: WanTransformer) -> None:
    noise = torch.randn(4, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    text = torch.randn(5, 10, generator=torch.Generator().manual_seed(2))
    system = short(systems.get("wan"))
    asked = ade.Request(num_frames=4, size=(2, 4), condition=text, latents=noise)
    found = engine(model, 200).submit(system.request(asked)).result()
    x, past = noise.double(), []
    solver = system.solver
    assert isinstance(solver, ade.solvers.UniPC)
    for step, (p, q, a, b, _, *weights, _) in enumerate(solver.coefficients.tolist()):
        t = torch.full((1, 4), float(solver.timesteps[step]))
        out = model.forward_clip(x[None].float(), t, text[None], block=None)[0].double()
        x0 = p * x + q * out
        x = a * x + b * x0 + sum(c * h for c, h in zip(weights, past, strict=False))
        past.insert(0, x0)
    torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-5)


BAD_MEMORIES = {
    "a joint window": lambda: Shots(Window(6, joint=True)),
    "a scene that starts with the video": lambda: Shots(Window(6), starts=(0,)),
    "scenes out of order": lambda: Shots(Window(6), starts=(6, 3)),
    "a pin beyond the window": lambda: Shots(Window(6), starts=(6,), pin=7),
    "a hard cut that is none": lambda: Shots(Window(6), starts=(6,), hard=(3,)),
    "prompts over everything": lambda: Recached(Full(), (6,)),
    "places that never end": lambda: Restarted(Window(6), limit=5, first=5),
    "no memory": lambda: Restarted("window", limit=5, first=1),
}


@pytest.mark.parametrize("what", BAD_MEMORIES)
def test_memories_that_make_no_sense(what: str) -> None:
    with pytest.raises(ConfigError, match="memory"):
        BAD_MEMORIES[what]()


@pytest.mark.parametrize("memory", [Shots(Window(6), starts=(4,)), Recached(Window(6), (4,))])
def test_scenes_and_prompts_begin_with_a_block(model: WanTransformer, memory: Shots | Recached) -> None:
    asked = LONGLIVE.request(ade.Request(num_frames=9, size=(2, 4), condition=torch.zeros(5, 10)))
    with pytest.raises(ConfigError, match="frame 4"):
        engine(model, 100).submit(replace(asked, memory=memory))
