# SPDX-License-Identifier: Apache-2.0
"""What can be done to a stream on its way: another condition, forks, going back, more frames, a pause.

Everything is checked before anything changes. The caller holds the engine's lock, so edits fall between
passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ardiff_engine.engine.admission import page_need
from ardiff_engine.engine.stream_latents import StreamLatents
from ardiff_engine.errors import ConfigError, PlanError, StreamClosedError, explain
from ardiff_engine.plan import Plan

if TYPE_CHECKING:
    from ardiff_engine.engine.stream import Stream

Effect = Literal["keep", "recommit", "reset"]


@dataclass(frozen=True, slots=True)
class ConditionReceipt:
    """What `set_condition` does. first_frame: the condition holds for this and all later frames.

    recommitted: clean frames whose K/V are computed again under it. forgotten: frames that are no longer
        seen.
    """

    effect: Effect
    first_frame: int
    recommitted: tuple[int, ...]
    forgotten: range


def set_condition(
    stream: Stream,
    condition: torch.Tensor | int | None,
    negative_condition: torch.Tensor | int | None,
    effect: Effect,
) -> ConditionReceipt:
    _require_alive(stream, "set_condition")
    if effect not in get_args(Effect):
        raise ConfigError(
            explain(
                "effect", got=repr(effect), expected=" | ".join(get_args(Effect)), fix="Choose one of them."
            )
        )
    conditions = [stream.engine.condition(condition)]
    if len(stream.weights) > 1:
        kept = stream.conditions[1]
        negative = negative_condition
        conditions.append(kept if negative is None else stream.engine.condition(negative))
    feeder = stream.feeder
    first, floor = feeder.oldest_unfinished, feeder.floor
    recommitted: list[int] = []
    forgotten = range(0)
    feeder.renew_context()
    if effect == "recommit":
        recommitted = feeder.recommit()
        stream.exact = stream.exact and feeder.floor == floor
    elif effect == "reset":
        forgotten = range(floor, feeder.forget())
    else:
        stream.exact = stream.exact and not stream.engine.model.spec.forgets
    stream.conditions = torch.stack(conditions)
    return ConditionReceipt(effect, first, tuple(recommitted), forgotten)


def fork(
    stream: Stream,
    seed: int | None,
    noise_stream: int | None,
    on_step: Callable[[Stream], None] | None,
) -> Stream:
    _require_running(stream, "fork")
    if stream.request.generator is not None and seed is None:
        raise ConfigError(
            explain(
                "fork() of a stream with a torch.Generator",
                got="no seed",
                expected="a seed",
                fix="Two streams cannot draw from one generator: pass fork(seed=...).",
            )
        )
    request = replace(
        stream.request,
        seed=stream.request.seed if seed is None else seed,
        noise_stream=stream.request.noise_stream if noise_stream is None else noise_stream,
        generator=stream.request.generator if seed is None else None,
        on_step=on_step,
    )
    request.check(stream.engine.model.spec)
    other = stream.engine.adopt(stream, request)
    other.latents = StreamLatents(dict(stream.latents))
    kept = stream.outbox.kept
    other.outbox.kept = None if kept is None else list(kept)
    other.then, other.exact, other.noise.given = stream.then, stream.exact, stream.noise.given
    return other


def rollback(stream: Stream, frame: int) -> None:
    _require_running(stream, "rollback")
    feeder, plan = stream.feeder, stream.feeder.plan
    least, most = max(stream.request.prefix_frames, feeder.floor), feeder.oldest_unfinished
    if not (isinstance(frame, int) and least <= frame <= most):
        raise ConfigError(
            explain(
                "rollback",
                got=frame,
                expected=f"{least}..{most}: not given or forgotten, and not after the first unfinished frame",
                fix="Choose a frame that has been generated.",
            )
        )
    new = plan.continued(frame)
    if stream.then is not None:
        # What waits for its turn goes on from here as well.
        new = stream.then.continued(frame)
    missing = feeder.missing(new)
    if missing and stream.outbox.kept is None:
        raise PlanError(
            explain(
                "rollback of an endless stream",
                got=f"frame {frame}, which needs frame {missing[0]}",
                expected="a frame whose window is still there",
                fix="Go back less far, or submit a new request with the frames as prefix.",
            )
        )
    _make_room(stream, new)
    _go_on(stream, new, from_scratch=bool(missing))
    stream.then = None
    stream.outbox.forget_from(frame)


def extend(stream: Stream, frames: int) -> None:
    _require_alive(stream, "extend")
    total = stream.num_frames
    if total is None or not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise ConfigError(
            explain(
                "extend",
                got=f"{frames!r} frames for a video of {'endless length' if total is None else total}",
                expected="a whole number >= 1, and a finite video",
                fix="Endless streams need no extension.",
            )
        )
    plan, done = stream.feeder.plan, stream.feeder.tick
    longer = (plan if stream.then is None else stream.then).extended(frames)
    if stream.then is None:
        if _same_until(plan, longer, done):
            _make_room(stream, longer)
            stream.feeder.plan = longer
            return
        longer = longer.continued(total)
    _make_room(stream, longer)
    stream.then = longer


def start_extension(stream: Stream) -> None:
    """The plan is done and an extension waits: its frames continue the finished ones."""
    assert stream.then is not None
    new, stream.then = stream.then, None
    _go_on(stream, new, from_scratch=bool(stream.feeder.missing(new)))


def suspend(stream: Stream) -> None:
    _require_alive(stream, "suspend")
    if stream.state == "suspended":
        return
    if stream.state == "running":
        stream.saved = stream.pages.save(stream.engine.pool)
    stream.latents = StreamLatents({f: latent.to("cpu", copy=True) for f, latent in stream.latents.items()})
    stream.state = "suspended"
    stream.engine.changes.notify()


def resume(stream: Stream) -> None:
    _require_alive(stream, "resume")
    if stream.state != "suspended":
        return
    engine = stream.engine
    lease = engine.pool.manager.lease(stream.pages.most)
    try:
        latents = StreamLatents({f: latent.to(engine.device) for f, latent in stream.latents.items()})
        if stream.saved is None:
            stream.pages.lease = lease
        else:
            stream.pages.restore(engine.pool, stream.saved, lease)
    except BaseException:
        # Out of memory, say: the stream stays suspended and can be resumed later.
        lease.close()
        raise
    stream.saved, stream.latents = None, latents
    stream.state = "running"
    engine.register.queue_up(stream)
    engine.changes.notify()


def _same_until(plan: Plan, longer: Plan, n: int) -> bool:
    """Whether a longer plan has moved the same frames in the first n ticks; in the first one at least."""
    last = max(n - 1, 0)
    return longer.newest(last) == plan.newest(last) and longer.tick(last) == plan.tick(last)


def _go_on(stream: Stream, plan: Plan, *, from_scratch: bool) -> None:
    if from_scratch:
        kept = stream.outbox.kept
        assert kept is not None, "finite streams keep their clean frames"
        stream.pages.drop_from(0)
        stream.latents = StreamLatents(dict(enumerate(kept[: plan.prefix])))
    else:
        stream.pages.drop_from(plan.prefix)
        stream.latents = StreamLatents({f: latent for f, latent in stream.latents.items() if f < plan.prefix})
    stream.feeder.restart(plan, from_scratch=from_scratch)


def _make_room(stream: Stream, plan: Plan) -> None:
    """Check the plan against the memory policy and raise the promise of pages to what it can need."""
    spec = stream.engine.model.spec
    stream.policy.check(plan, spec)
    need = page_need(plan, spec, stream.policy, len(stream.weights))
    if need.most > stream.pages.most:
        if stream.pages.lease is not None:
            stream.pages.lease.resize(need.most)
        stream.pages.most = need.most


def _require_alive(stream: Stream, what: str) -> None:
    if stream.done:
        raise StreamClosedError(
            explain(
                what,
                got=f"a stream that is {stream.state}",
                expected="one that has not ended",
                fix="Submit a new request; `prefix` continues a finished video.",
            )
        )


def _require_running(stream: Stream, what: str) -> None:
    _require_alive(stream, what)
    if stream.state != "running":
        raise StreamClosedError(
            explain(
                what,
                got=f"a stream that is {stream.state}",
                expected="one that runs",
                fix="Resume it, or wait until it has its pages.",
            )
        )
