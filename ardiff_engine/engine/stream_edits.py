# SPDX-License-Identifier: Apache-2.0
"""What can be done to a stream on its way: another condition, forks, going back, more frames, a pause.

Everything is checked before anything changes. The engine calls these between passes, with nothing on its way
to a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from ardiff_engine.diffusion.guidance import Branch, same_condition, weight_table
from ardiff_engine.engine.admission import check_served, page_need
from ardiff_engine.engine.condition_store import condition_keys
from ardiff_engine.engine.decoding import StreamDecoder
from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.reader import Outbox
from ardiff_engine.engine.request import Request, check_frames, checked_branches
from ardiff_engine.engine.scheduler import Scheduler
from ardiff_engine.engine.schedules import Schedules, tracks_of
from ardiff_engine.engine.starting_noise import StartingNoise, given_frames
from ardiff_engine.engine.state import Steering, StreamState
from ardiff_engine.errors import ConfigError, ForgottenError, OutOfPagesError, StreamClosedError, explain
from ardiff_engine.memory import PagePool
from ardiff_engine.memory.mean_keys import mean_keys
from ardiff_engine.memory.view import numbers
from ardiff_engine.models.agreement import checked_condition
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.plan import Plan

Effect = Literal["keep", "recommit", "reset"]


@dataclass(frozen=True, slots=True)
class ConditionReceipt:
    """What `set_condition` does. first_frame: the condition holds for this and all later frames.

    tick: the stream's `ticks_done` then. recommitted: clean frames whose K/V are computed again under it.
    forgotten: frames that are no longer seen.
    """

    effect: Effect
    first_frame: int
    recommitted: tuple[int, ...]
    forgotten: range
    tick: int


class Editor:
    """The edits of one engine's streams; `Stream` says what they do."""

    def __init__(self, model: VideoModel, pool: PagePool, schedules: Schedules, scheduler: Scheduler) -> None:
        self._model = model
        self._pool = pool
        self._schedules = schedules
        self._scheduler = scheduler

    def set_condition(
        self,
        state: StreamState,
        condition: torch.Tensor | int | None,
        negative_condition: torch.Tensor | int | None,
        effect: Effect,
    ) -> ConditionReceipt:
        _require_alive(state, "set_condition")
        conditions = self._conditions(state, condition, negative_condition)
        last = state.next_steering or state
        return self._renew(state, last.branches, last.weights, conditions, effect)

    def set_branches(
        self, state: StreamState, branches: Sequence[Branch], effect: Effect
    ) -> ConditionReceipt:
        _require_alive(state, "set_branches")
        new, old = checked_branches("branches", branches), state.branches
        if [(own.view, own.writes) for own in new] != [(own.view, own.writes) for own in old]:
            raise ConfigError(
                "set_branches: as many branches as the stream has, with the same view and writes each, take "
                "the places of the old ones"
            )
        steps = [own.num_steps for own in tracks_of(state.schedule.solver)]
        weights = weight_table(new, steps)
        conditions = [checked_condition(self._model, own.condition) for own in new]
        return self._renew(state, new, weights, conditions, effect)

    def set_frame_inputs(self, state: StreamState, new: Mapping[str, Any], begun: bool) -> ConditionReceipt:
        _require_alive(state, "set_frame_inputs")
        first = state.feeder.oldest_unfinished if begun else _next_start(state.feeder)
        state.inputs = state.inputs.replaced(new, state.num_frames, first)
        return ConditionReceipt("keep", first, (), range(0), state.feeder.ticks_total)

    def _renew(
        self,
        state: StreamState,
        branches: tuple[Branch, ...],
        weights: np.ndarray,
        conditions: list[torch.Tensor],
        effect: Effect,
    ) -> ConditionReceipt:
        if effect not in get_args(Effect):
            raise ConfigError(f"effect: got {effect!r}, expected one of {', '.join(get_args(Effect))}.")
        feeder = state.feeder
        first, floor = feeder.oldest_unfinished, feeder.floor
        recommitted: list[int] = []
        forgotten = range(0)
        if effect == "recommit":
            recommitted = self._recommit(state)
            state.exact = state.exact and feeder.floor == floor
        elif effect == "reset":
            forgotten = range(floor, feeder.forget())
        else:
            state.exact = state.exact and not state.policy.network(self._model.spec).forgets
        stacked = torch.stack(conditions)
        keys = condition_keys(self._model.spec, stacked)
        state.steer(Steering(branches, weights, stacked, keys), stored_first=effect == "keep")
        return ConditionReceipt(effect, first, tuple(recommitted), forgotten, feeder.ticks_total)

    def _recommit(self, state: StreamState) -> list[int]:
        feeder, start = state.feeder, _next_start(state.feeder)
        policy = state.policy.prompted(start) if feeder.tick else None
        if policy is None:
            return feeder.recommit()
        policy.check(feeder.plan, self._model.spec)
        state.policy = policy
        feeder.go_on_with(policy)
        return numbers(policy.renewed(range(start, start + 1)))

    def fork(
        self,
        state: StreamState,
        seed: int | None,
        noise_stream: int | None,
        on_step: Callable[[Any], None] | None,
    ) -> tuple[StreamState, Request]:
        """The second stream, which runs, and its request."""
        _require_running(state, "fork")
        if state.request.generator is not None and seed is None:
            raise ConfigError(
                explain(
                    "fork() of a stream with a torch.Generator",
                    got="no seed",
                    expected="a seed",
                    fix="Two streams cannot draw from one generator: pass fork(seed=...).",
                )
            )
        request = replace(
            state.request,
            seed=state.request.seed if seed is None else seed,
            noise_stream=state.request.noise_stream if noise_stream is None else noise_stream,
            generator=state.request.generator if seed is None else None,
            on_step=on_step,
        )
        request.check(self._model.spec)
        kept = state.outbox.kept
        plain = replace(request, on_step=None)
        noise = StartingNoise(plain, self._model, state.noise.source)
        self._check_decoder(state, self._scheduler.decoders)
        lease = self._pool.manager.lease(state.pages.most)
        try:
            other = replace(
                state,
                number=self._scheduler.submitted,
                request=plain,
                watched=on_step is not None,
                feeder=state.feeder.copy(),
                pages=state.pages.fork(lease),
                noise=noise,
                inputs=state.inputs.copy(),
                latents=dict(state.latents),
                history=dict(state.history),
                outbox=Outbox(None if kept is None else list(kept)),
                decoder=None if state.decoder is None else state.decoder.fork(),
                schedule=self._schedules.use(state.schedule.solver),
                collecting=False,
            )
        except BaseException:
            lease.close()
            raise
        self._scheduler.add(other)
        return other, request

    def rollback(self, state: StreamState, frame: int, given: torch.Tensor | None) -> None:
        _require_running(state, "rollback")
        feeder, plan = state.feeder, state.feeder.plan
        least, most = max(state.request.prefix_frames, feeder.floor), feeder.oldest_unfinished
        if not (isinstance(frame, int) and least <= frame <= most):
            raise ConfigError(
                explain(
                    "rollback",
                    got=frame,
                    expected=f"{least}..{most}: not given or forgotten, and not after the first unfinished "
                    "frame",
                    fix="Choose a frame that has been generated.",
                )
            )
        latents = () if given is None else self._given(state, frame, given)
        # An extension that waits for its turn goes on from here as well.
        new = (state.then or plan).continued(frame + len(latents))
        missing = feeder.missing((state.then or plan).continued(frame))
        if missing and state.outbox.kept is None:
            raise ForgottenError(
                explain(
                    "rollback of an endless stream",
                    got=f"frame {frame}, which needs frame {missing[0]}",
                    expected="a frame whose window is still there",
                    fix="Go back less far, keep more with memory.Window(back=...), or submit a new request "
                    "with the frames as prefix.",
                )
            )
        if state.decoder is not None:
            state.decoder.check_back(frame)
        self._make_room(state, new)
        if state.decoder is not None and latents:
            # On a copy: a codec that fails has changed nothing.
            old, decoder = state.decoder, state.decoder.fork()
            decoder.rollback(frame)
            decoder.decode(list(enumerate(latents, frame)), None)
            state.decoder = decoder
            old.close()
        elif state.decoder is not None:
            state.decoder.rollback(frame)
        state.outbox.forget_from(frame)
        if state.outbox.kept is not None:
            state.outbox.kept += latents
        state.restart(new, from_scratch=bool(missing), given=latents)
        state.then = None

    def mean_keys(self, state: StreamState, frame: int) -> torch.Tensor:
        _require_running(state, "mean_keys")
        pages, place = state.pages.written(frame)
        return mean_keys(self._pool.k, pages, state.tokens, place, self._model.spec)

    def extend(self, state: StreamState, frames: int) -> None:
        _require_alive(state, "extend")
        total = state.num_frames
        if total is None or not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
            raise ConfigError(
                explain(
                    "extend",
                    got=f"{frames!r} frames for a video of {'endless length' if total is None else total}",
                    expected="a whole number >= 1, and a finite video",
                    fix="Endless streams need no extension.",
                )
            )
        state.inputs.check_length(total + frames)
        plan, done = state.feeder.plan, state.feeder.tick
        longer = whole = (state.then or plan).extended(frames)
        goes_on = state.then is None and _same_until(plan, longer, done)
        if state.then is None and not goes_on:
            longer = longer.continued(total)
        check_served(longer, state.policy, self._model.spec)
        state.policy.check(longer, self._model.spec)
        # One of its own knows nothing of frames that finish together before it, stored beside its first ones.
        self._promise(state, longer, whole)
        if goes_on:
            state.feeder.extend(longer)
            return
        state.then = longer

    def suspend(self, state: StreamState) -> None:
        _require_alive(state, "suspend")
        if state.status == "suspended":
            return
        latents = {frame: latent.to("cpu", copy=True) for frame, latent in state.latents.items()}
        history = {frame: planes.to("cpu", copy=True) for frame, planes in state.history.items()}
        decoder = None if state.decoder is None else state.decoder.moved("cpu")
        inputs = state.inputs.moved("cpu")
        if state.status == "running":
            state.saved = state.pages.save(self._pool)
        if state.decoder is not None:
            state.decoder.replace(decoder)
        state.latents, state.history, state.inputs, state.status = latents, history, inputs, "suspended"

    def resume(self, state: StreamState) -> None:
        _require_alive(state, "resume")
        if state.status != "suspended":
            return
        device = self._pool.k.device
        self._check_decoder(state, [d for d in self._scheduler.decoders if d is not state.decoder])
        lease = self._pool.manager.lease(state.pages.most)
        try:
            decoder = None if state.decoder is None else state.decoder.moved(None)
            latents = {frame: latent.to(device) for frame, latent in state.latents.items()}
            history = {frame: planes.to(device) for frame, planes in state.history.items()}
            inputs = state.inputs.moved(device)
            if state.saved is None:
                state.pages.lease = lease
            else:
                state.pages.restore(self._pool, state.saved, lease)
        except BaseException:
            # Out of memory, say: the stream stays suspended and can be resumed later.
            lease.close()
            raise
        if state.decoder is not None:
            state.decoder.replace(decoder)
        state.saved, state.latents, state.history, state.inputs = None, latents, history, inputs
        state.status = "running"
        self._scheduler.queue_up(state)

    def _given(self, state: StreamState, frame: int, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Clean frames from `frame` on, as solver and engine have them."""
        asked = replace(state.request, prefix=given)
        assert asked.prefix is not None
        check_frames("rollback(given=...)", asked.prefix, None, self._model.spec.frame_shape(asked.size))
        if state.num_frames is not None and frame + len(asked.prefix) >= state.num_frames:
            raise ConfigError(
                f"rollback({frame}, given) of {len(asked.prefix)} frames, to the end of a video of "
                f"{state.num_frames}: leave a block for the stream to make, or extend() it first"
            )
        return given_frames(asked, self._model)

    def _conditions(
        self,
        state: StreamState,
        condition: torch.Tensor | int | None,
        negative_condition: torch.Tensor | int | None,
    ) -> list[torch.Tensor]:
        """Of all branches: the new ones, and those that stay."""
        last = state.next_steering or state
        new = checked_condition(self._model, condition)
        if state.request.branches is not None:
            if negative_condition is not None:
                raise ConfigError(
                    "negative_condition of a stream with branches: only the first one's changes"
                )
            own = zip(same_condition(last.branches), last.conditions, strict=True)
            return [new if changes else kept for changes, kept in own]
        conditions = [new, *last.conditions[1:]]
        if negative_condition is not None and len(conditions) > 1:
            conditions[1] = checked_condition(self._model, negative_condition)
        return conditions

    def _check_decoder(self, state: StreamState, beside: Iterable[StreamDecoder | None]) -> None:
        """OutOfMemoryError unless there is room for such a decoder as the stream's beside the others."""
        if state.decoder is not None:
            state.decoder.check_memory(beside)

    def _make_room(self, state: StreamState, plan: Plan) -> None:
        """Check the plan against the memory policy and raise the promise of pages to what it can need."""
        state.policy.check(plan, self._model.spec)
        self._promise(state, plan)

    def _promise(self, state: StreamState, *plans: Plan) -> None:
        """Pages for each of the plans, or none of them: OutOfPagesError, and the promise stays as it was."""
        spec, total = self._model.spec, self._pool.manager.total
        branches, size, rows = state.branches, state.request.size, self._pool.page_rows
        need = max(page_need(plan, spec, state.policy, branches, size, rows).most for plan in plans)
        if need > total:
            raise OutOfPagesError(
                f"the longer video can need {need} pages, and the whole pool has {total}: use a smaller "
                "window, or raise max_pages"
            )
        if need > state.pages.most:
            if state.pages.lease is not None:
                state.pages.lease.resize(need)
            state.pages.most = need


def _next_start(feeder: Feeder) -> int:
    """The first frame of the next block to start."""
    plan, after = feeder.plan, feeder.plan.now(feeder.tick).newest + 1
    if feeder.done:
        return after
    tick = plan.tick(feeder.tick)
    return next(iter(tick.starting), after)


def _same_until(plan: Plan, longer: Plan, n: int) -> bool:
    """Whether a longer plan has moved the same frames in the first n ticks; in the first one at least."""
    last = max(n - 1, 0)
    return longer.newest(last) == plan.newest(last) and longer.tick(last) == plan.tick(last)


def _require_alive(state: StreamState, what: str) -> None:
    if state.over:
        raise StreamClosedError(
            explain(
                what,
                got=f"a stream that is {state.shown}",
                expected="one that has not ended",
                fix="Submit a new request; `prefix` continues a finished video.",
            )
        )


def _require_running(state: StreamState, what: str) -> None:
    _require_alive(state, what)
    if state.status != "running":
        raise StreamClosedError(
            explain(
                what,
                got=f"a stream that is {state.shown}",
                expected="one that runs",
                fix="Resume it, or wait until it has its pages.",
            )
        )
