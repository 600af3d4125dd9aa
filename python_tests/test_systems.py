# SPDX-License-Identifier: Apache-2.0
"""Every system, built from the entries of the golden index, does call by call what its own code did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine import ops, systems
from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import UniPC
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.request import Request
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import Window
from ardiff_engine.systems.calls import ANY_NETWORK, by_kind
from ardiff_engine.systems.official.lumos1 import history_mask

GOLDEN = Path(__file__).parent / "golden" / "systems"
INDEX = json.loads((GOLDEN / "index.json").read_text())
ARRAYS = ("fed", "updated", "timestep", "written", "visible", "position", "key_call")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def traced() -> list[str]:
    """Those that are traces: others hold schedules, masks or losses."""
    names = [name for name in INDEX if (GOLDEN / f"{name}.npz").exists()]
    return [name for name in names if "fed" in np.load(GOLDEN / f"{name}.npz").files]


def built(name: str) -> systems.System:
    """From its entry and its name, which says some sizes of long videos."""
    return systems.from_spec(INDEX[name] | {"name": name})


@pytest.mark.parametrize("name", traced())
def test_every_call_of_the_official_code(name: str) -> None:
    official = golden(name)
    ours = built(name).trace()
    for key in ARRAYS:
        if key in official:
            np.testing.assert_allclose(getattr(ours, key), official[key], rtol=1e-6, atol=0, err_msg=key)


def test_systems_by_name() -> None:
    for name in systems.names():
        assert systems.get(name).name == name
    with pytest.raises(ConfigError, match="hiar is nearest"):
        systems.get("hair")
    with pytest.raises(ConfigError, match="unknown system"):
        systems.from_spec({"frames": 3})
    with pytest.raises(ConfigError, match="timesteps"):
        systems.from_spec({"system": "self-forcing", "block": 3})


def test_an_endless_system_needs_a_number_of_frames() -> None:
    with pytest.raises(PlanError, match="endless"):
        systems.get("longlive").trace()
    assert systems.get("longlive").trace(num_frames=9).fed.shape == (15, 9)


def drawn(official: dict[str, np.ndarray], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What each frame starts from [F], and the noise of each of its updates [F, steps]."""
    frames = official["fed"].shape[1]
    start, noise = np.empty(frames), np.zeros((frames, steps))
    for frame in range(frames):
        start[frame] = official["x_in"][official["fed"][:, frame].argmax(), frame]
        if not official["updated"][:, frame].any() and frame < len(official.get("final", ())):
            start[frame] = official["final"][frame]  # given: it may be fed with noise
        key = next((key for key in ("renoise_eps", "eps", "noise") if key in official), None)
        if key is not None:
            eps = official[key][official["updated"][:, frame], frame]
            noise[frame, : len(eps)] = np.nan_to_num(eps)
    return start, noise


NO_LATENTS = {
    "fifo_f4_n2": "of a window only the noise of its first frame is on record",
    "fifo_f4_n2_lookahead": "of a window only the noise of its first frame is on record",
    "ca2_vdm_perturb300_g2_chunk3_cap8_S4": "finished frames get noise before they are stored",
    "diffusion_forcing_ddpm_T10_F5": "a fault: 10 training timesteps make NaN of all latents",
    "fvdm_i2v_frame0_F5_S4": "a fault: given frames become their estimate at timestep 0 in each call",
    "fvdm_interpolation_F5_S4": "a fault: given frames become their estimate at timestep 0 in each call",
    "fvdm_extend_F6_cond2_x3_S4": "a fault: given frames become their estimate at timestep 0 in each call",
}
"""Files whose latents are not compared at all, and why."""

ROUNDED = {
    "diffusion_forcing_pyramid_u1_eta1_x0_F5_S4": 1e-4,
    "ca2_vdm_g1_chunk2_cap5_S2": 5e-2,
    "ca2_vdm_rope_g1_chunk2_cap5_S2": 5e-2,
}
"""Where the official float32 loses digits: x/√ᾱ − x0 at ᾱ = 3e-7, and x/√ᾱ, of hundreds, at ᾱ = 4e-5."""

SOLVED_OTHERWISE = {
    "krea_ctx3_F15": "a first frame is encoded anew from pictures, which are not on record",
    "streamdiffusionv2_S2_K6_sink3": "the noise of its steps is not on record",
    "streamdiffusionv2_S4_K6_sink0_refresh9": "the noise of its steps is not on record",
    "skyreels_v2_i2v_addnoise20_F5_S4_ar2": "the noise on its given frame is not on record",
    "magi1_C5_S8_W4_prefix9frames": "the first latent of a chunk is given, and recorded for the others",
}
"""Files whose latents before each call are not compared, and why."""


@pytest.mark.parametrize("name", traced())
def test_every_latent_of_the_official_code(name: str) -> None:
    official, ours = golden(name), built(name)
    if "x_in" not in official or name in NO_LATENTS:
        pytest.skip(NO_LATENTS.get(name, "no latents on record"))
    start, noise = drawn(official, max(own.num_steps for own in ours.tracks))
    made = ours.trace(noise=start, step_noise=noise)
    if "final" in official:
        np.testing.assert_allclose(made.final, official["final"], rtol=1e-6, atol=ROUNDED.get(name, 1e-6))
    if name not in SOLVED_OTHERWISE:
        np.testing.assert_allclose(made.x_in, official["x_in"], rtol=1e-6, atol=ROUNDED.get(name, 1e-6))


def test_a_system_without_a_network_is_traced_and_not_served() -> None:
    for serve in (lambda own: own.check(ANY_NETWORK), lambda own: own.request(Request(num_frames=3))):
        with pytest.raises(ConfigError, match="sampler"):
            serve(systems.get("lumos-1"))


@pytest.mark.parametrize(("tokens", "ratio"), [(20, 30), (20, 70), (35, 30), (64, 70), (448, 30), (448, 70)])
def test_history_of_masked_tokens(tokens: int, ratio: int) -> None:
    masked = history_mask(1, tokens - 1, ratio / 100)[0]
    places = golden("lumos1_training_rope")[f"history_pattern_n{tokens}_r{ratio}"]
    assert masked.nonzero().flatten().tolist() == places[places < tokens - 1].tolist()


# Faults of the official code, which the traces show as they are.


def test_longlive_recaches_frames_that_see_later_ones() -> None:
    """It builds a causal mask for that pass, and the attention over its cache ignores it: `memory.Recached`.
    What `Stream.set_condition(effect="recommit")` stores under a plain window is causal."""
    official = golden("longlive1_switch15_local_sink_F24")
    call = int(np.argmax(official["fed"].sum(axis=1)))
    seen = official["visible"][call]
    assert seen[3, 14] and not official["updated"][call].any()
    system = systems.get("longlive")
    feeder = Feeder(system.plan_of(24), Window(9, sink=3), ANY_NETWORK)
    while feeder.tick < 20:
        feeder.advance(feeder.next())
    feeder.recommit()
    own = feeder.next().roster
    stored = [view for view, moves in zip(own.views, own.updates, strict=True) if not moves]
    frames = [frame for frame, moves in zip(own.frames, own.updates, strict=True) if not moves]
    assert len(frames) >= 9
    assert all(view[-1].stop <= frame - frame % 3 + 3 for frame, view in zip(frames, stored, strict=True))


@pytest.mark.parametrize("name", ["rolling_forcing_F12_S4", "rolling_forcing_F21_S5"])
def test_rolling_forcing_stores_estimates_that_nobody_reads(name: str) -> None:
    official, system = golden(name), systems.from_spec(INDEX[name])
    stores = ~official["updated"].any(axis=1)
    read = set(official["key_call"][~stores].ravel().tolist())
    wasted = [call for call in np.flatnonzero(stores).tolist() if call not in read]
    # While the window fills, and the last block of all.
    assert len(wasted) == system.tracks[0].num_steps
    plain = replace(system, calls_of=by_kind).trace()
    assert len(official["fed"]) - len(plain.fed) == len(wasted) - 1


def test_streamdiffusion_v2_keeps_three_slots_without_a_sink() -> None:
    """Its ring lets go of slots that were filled one by one; the third one is never on its list. And what the
    first two frames wrote in their last step is read by every step, although all others read their own."""
    name = "streamdiffusionv2_S4_K6_sink0_refresh9"
    official = golden(name)
    assert INDEX[name]["sink"] == 0
    last = official["visible"][-1].any(axis=0)
    assert last[:3].all() and not last[3:6].any()
    later = official["tick"] > 0
    assert set(official["key_call"][later, 0].tolist()) == {3}


def test_skyreels_corrects_from_a_sample_that_the_first_step_has_overwritten() -> None:
    """Its solver keeps a view of the latents. The solver alone, on tensors of their own, is our UniPC; only
    the second step of a frame differs."""
    official, system = golden("skyreels_v2_F5_S4_ar0"), systems.from_spec(INDEX["skyreels_v2_F5_S4_ar0"])
    plain = UniPC(FlowSchedule(8.0), 4)
    np.testing.assert_array_equal(
        (plain.coefficients != system.tracks[0].coefficients).any(1), [False, True, False, False]
    )
    made = replace(system, solver=plain).trace(noise=official["x_in"][0])
    np.testing.assert_allclose(made.x_in[:2], official["x_in"][:2], rtol=1e-6)
    assert (abs(made.x_in[2] - official["x_in"][2]) > 5e-3).all()


def test_hiar_passes_again_over_a_block_that_is_stored() -> None:
    official = golden("hiar_hybrid_block0_F9_S4")
    calls = np.flatnonzero(official["fed"][:, 0] & ~official["updated"][:, 0])
    assert len(calls) == 5
    np.testing.assert_array_equal(official["timestep"][calls, 0], 0)
    system = systems.from_spec(INDEX["hiar_hybrid_block0_F9_S4"])
    plain = replace(system, calls_of=by_kind).trace()
    assert (plain.fed[:, 0] & ~plain.updated[:, 0]).sum() == 1


# Systems without code of their own, against the schedules that their papers describe.


def moving_at(trace: systems.Trace) -> list[list[float]]:
    """Of each call that moves frames: their timesteps."""
    moves = trace.updated.any(axis=1)
    return [
        row[moved].tolist() for row, moved in zip(trace.timestep[moves], trace.updated[moves], strict=True)
    ]


def test_asd_gives_the_first_block_four_steps() -> None:
    entry = {"system": "asd", "block": 1, "new_frames": 3, "timesteps": [1000.0]}
    told = moving_at(systems.from_spec(entry).trace())
    np.testing.assert_allclose(np.ravel(told), [1000, 937.5, 2500 / 3, 625, 1000, 1000], rtol=1e-6)
    steps = [own.num_steps for own in systems.get("asd-two-steps").tracks]
    assert steps == [4, 2]


def test_infvsr_takes_one_step_from_what_is_given() -> None:
    system = systems.from_spec({"system": "infvsr", "block": 1, "new_frames": 5})
    given = np.linspace(-1, 1, 5)
    made = system.trace(noise=given)
    assert moving_at(made) == [[399.0]] * 5 and made.fed.sum() == 5
    sigma = float(system.tracks[0].schedule.sigma(torch.tensor([399.0])))
    assert abs(sigma - 0.399) < 5e-3
    np.testing.assert_allclose(made.final, given - sigma * (0.3 * given + 0.05), rtol=0, atol=1e-9)
    # The block before, and no other one.
    assert [np.flatnonzero(seen.any(axis=0)).tolist() for seen in made.visible[2:4]] == [[1, 2], [2, 3]]


def test_rolling_diffusion_has_its_local_times() -> None:
    window, steps = 5, 4
    system = systems.from_spec({"system": "rolling-diffusion", "window": window, "steps": steps, "frames": 9})
    ticks = list(system.plan_of(9).ticks())
    levels = np.zeros((len(ticks) + 1, 9))
    for n, tick in enumerate(ticks):
        levels[n + 1] = levels[n]
        levels[n + 1, list(tick.frames)] += 1
    times = 1 - levels / (window * steps)
    # The window is full once its first frame is one roll from its end: (w + 1) / W, then (w + t) / W.
    full = (window - 1) * steps
    for n in range(steps + 1):
        expected = (np.arange(window) + 1 - n / steps) / window
        np.testing.assert_allclose(times[full + n, :window], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(times[full + steps + n, 1 : window + 1], expected, rtol=0, atol=1e-9)
    for n in range(full + 1):
        t = 1 - n / full
        expected = np.clip(np.arange(window) / window + (t * (window - 1) + 1) / window, 0, 1)
        np.testing.assert_allclose(times[n, :window], expected, rtol=0, atol=1e-9)


def test_mcvd_feeds_past_new_and_future_frames_together() -> None:
    entry = {"system": "mcvd", "past": 2, "new": 3, "future": 1, "blocks": 1}
    made = systems.from_spec(entry).trace()
    assert made.fed.all() and made.visible.all()
    assert made.updated.any(axis=0).tolist() == [False, False, True, True, True, False]
    rolled = systems.get("mcvd").trace()
    assert rolled.updated.any(axis=0).sum() == 20 and (rolled.fed.sum(axis=1) == 10).all()


def test_videoar_keeps_each_scale_and_sees_all_scales_of_earlier_frames() -> None:
    frames, scales, window = 5, 3, 3
    entry = {"system": "videoar", "frames": frames, "scales": scales, "window": window}
    calls = systems.from_spec(entry).calls(frames)
    assert [(cell.frame, cell.level) for cells in calls for cell in cells] == [
        (frame, scale) for frame in range(frames) for scale in range(scales)
    ]
    for (cell,) in calls:
        seen = [(frame, run.copy) for run in cell.view for frame in range(run.first, run.stop)]
        before = range(max(0, cell.frame + 1 - window), cell.frame)
        whole = [(frame, scale) for frame in before for scale in range(scales)]
        assert seen == whole + [(cell.frame, scale) for scale in range(cell.level + 1)]
        assert cell.copy == cell.level and cell.written  # never written again


def test_d_ar_makes_one_picture_group_by_group() -> None:
    made = systems.from_spec({"system": "d-ar", "groups": 4}).trace()
    assert made.timestep.tolist() == [[3.0], [2.0], [1.0], [0.0]] and made.updated.all()


def test_knot_forcing_makes_a_frame_twice_under_a_reference_that_runs_ahead() -> None:
    sizes = {"block": 3, "knot": 1, "window": 6, "sink": 1, "given_frames": 1, "new_frames": 12}
    made = systems.from_spec({"system": "knot-forcing", "timesteps": [1000.0, 500.0]} | sizes).trace()
    moves = made.updated.any(axis=1)
    fed = [np.flatnonzero(row).tolist() for row in made.updated[moves][::2]]
    assert fed == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10], [10, 11, 12]]
    assert not made.written[:, 10][made.fed[:, 7]].any()
    stored = [np.flatnonzero(row).tolist() for row in made.fed[~moves]]
    assert stored == [[0], [1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    # n = 8, and four more as soon as start + block + knot > n.
    assert made.position[moves][::2, 0].tolist() == [8, 8, 12, 16]
    assert made.position[moves][-1, 8:13].tolist() == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("name", ["tempcache", "annca", "annsa"])
def test_fast_ar_keeps_all_frames_of_rolling_forcing(name: str) -> None:
    entry = INDEX["rolling_forcing_F21_S5"] | {"system": name}
    made = systems.from_spec(entry).trace()
    assert made.visible[-1, 20].all()
    with pytest.raises(ConfigError, match="traced, and not served"):
        systems.get(name).request(Request(num_frames=21))


def test_a_trapezoid_begins_anew_in_every_chunk() -> None:
    """Each chunk is what the code makes of a video that ends with it."""
    entry = INDEX["diffusion_forcing_trapezoid_u1_F5_S4"] | {"frames": 8, "chunk": 4, "window": 8}
    both = systems.from_spec(entry).trace()
    first = systems.from_spec(entry | {"frames": 4}).trace()
    second = systems.from_spec(entry | {"context_frames": 4, "chunk": -1}).trace()
    for key in ("fed", "updated"):
        np.testing.assert_array_equal(getattr(both, key)[: len(first.fed), :4], getattr(first, key))
        np.testing.assert_array_equal(getattr(both, key)[len(first.fed) :], getattr(second, key))
    with pytest.raises(ConfigError, match="window"):
        systems.from_spec(entry | {"chunk": -1, "window": 5})


@pytest.mark.parametrize("name", ["self-forcing-plus-plus", "vid-gpt", "astra", "cmdm", "flex"])
def test_systems_in_other_sizes(name: str) -> None:
    sizes = {"block": 2, "given_block": 1, "given_frames": 1, "new_frames": 8, "frames": 5, "window": 4}
    more = {"steps": 3, "timesteps": [1000.0, 500.0], "uncertainty": 1.0, "cache_frames": 4}
    entry = {"system": name, "position": "rope", "partial_causal": False} | sizes | more
    made = systems.from_spec(entry)
    assert made.name == name and made.trace().fed.any()


def test_liveact_reads_merged_slots() -> None:
    """Token by token: pages that hold the numbers of frames and calls, merged as its slots are."""
    official = golden("liveact_trace")
    system = systems.from_spec(INDEX["liveact_trace"])
    made = system.trace()
    most, tokens = official["read_token_frame"].shape[1:]
    steps = system.tracks[0].num_steps
    taps, before, pooled = system.memory.taps, 6, [2, 3]
    # Pages: the slots of a block, then room for those of the next. K holds frames, V calls.
    pages = torch.full((2, steps, 2 * most, 1, tokens, 1), torch.nan)
    for call, moved in enumerate(made.updated):
        step, frames = call % steps, np.flatnonzero(moved)
        own = pages[:, step : step + 1]
        held = most if frames[0] > before else 0 if frames[0] == 0 else before
        if held == most:
            rows = torch.arange(taps * tokens).reshape(tokens, taps)
            for number, slot in enumerate(pooled):
                for plane in own:
                    first = (2 + number * taps) * tokens
                    ops.pool_pages_(plane, first + rows, (most + slot) * tokens + torch.arange(tokens))
            own[:, :, pooled] = own[:, :, [most + slot for slot in pooled]]
            own[:, :, [4, 5]] = own[:, :, [12, 13]]
            held = before
        own[:, 0, held : held + len(frames)] = torch.stack(
            [torch.as_tensor(frames), torch.full((len(frames),), call)]
        ).float()[:, :, None, None, None]
        stop = held + len(frames)
        for plane, name in zip(
            own[:, 0, :stop, 0, :, 0], ("read_token_frame", "read_token_call"), strict=True
        ):
            np.testing.assert_allclose(plane, official[name][call, :stop], rtol=1e-6)
        assert (official["read_token_frame"][call, stop:] == -1).all()
        seen = np.flatnonzero(made.visible[call, frames[0]])
        slots = [seen[made.position[call, seen] == place] for place in range(stop)]
        assert sum(map(len, slots)) == len(seen)
        for slot, inside in enumerate(slots):
            assert official["read_slot_position"][call, slot] == slot
            tokens_of = official["read_token_frame"][call, slot]
            assert inside[0] <= tokens_of.min() and tokens_of.max() <= inside[-1]
    fed = official["fed"]
    np.testing.assert_array_equal(made.position[fed], official["query_position"][fed])
