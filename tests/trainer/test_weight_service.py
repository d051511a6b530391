"""Who gets weights when, with a real feeder and pool; the engines and the trainer's push are the test's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from stand_ins import StandInEngine, StandInTrainer

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.timers import Timer
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import Engine, EngineDied, EngineNotJoined, EngineStartError, GenerateRequest
from megatron_cgrpo.trainer.feeder import Feeder
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.trainer.weight_service import WeightService
from megatron_cgrpo.types import Completion, FinishReason, Prompt, Verdict

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
TIMEOUT_S = 0.5
PROMPTS = [Prompt(f"p{i}", "", [i + 2], "") for i in range(4)]


class AlwaysWrong:
    async def verify(self, prompt: Prompt, response: str, reason: FinishReason) -> Verdict:
        return Verdict(0.0, "wrong")


def recipe(*overrides: str) -> Recipe:
    settings = ("critic.kind=none", "algorithm.preset=r1_drgrpo", "train.prompts_per_step=2", "train.steps=3")
    return load_recipe(RECIPE, [*settings, *overrides])


@contextmanager
def serving(
    *engines: StandInEngine,
    critics: EnginePool | None = None,
    trainer: type[StandInTrainer] = StandInTrainer,
    progress_timeout_s: float = 60.0,
) -> Iterator[tuple[WeightService, Feeder, StandInTrainer, EnginePool]]:
    of, pool, pushes = recipe(), EnginePool(engines, progress_timeout_s, 60.0), trainer(engines)
    collector = Collector(pool, cast(Any, AlwaysWrong()), lambda step: None, of, str)
    system = System(cast(ActorGroup, pushes), pool, critics, join=pushes.join)
    with Feeder(collector, PromptSampler(PROMPTS, 0, 2), of, 1) as feeder:
        yield WeightService(system, feeder, Timer()), feeder, pushes, pool


class SlowToStart(StandInEngine):
    """Starts again when it ``may_start``."""

    def __init__(self) -> None:
        super().__init__()
        self.may_start = threading.Event()

    async def ready(self) -> None:
        while self.restarts and not self.may_start.is_set():
            await asyncio.sleep(0.001)
        await super().ready()


def recovered(feeder: Feeder, pool: EnginePool) -> None:
    """All engines run."""
    while pool.starting:
        feeder.run(pool.recover())


def test_weights_are_pushed_when_others_are_to_be_served() -> None:
    engine = StandInEngine()
    with serving(engine) as (service, _, pushes, _):
        service.serve(0)
        service.serve(0)
        service.serve(1)
        service.serve(0, base=True)
        assert pushes.pushes == [(0, False), (1, False), (0, True)]
        service.sleep()
        assert engine.version is None
        service.sleep()
        service.serve(0, base=True)
        assert pushes.pushes[-1] == (0, True) and engine.version == 0


def test_an_engine_that_was_lost_serves_again_with_the_next_push() -> None:
    dying, other = StandInEngine(), StandInEngine()
    with serving(dying, other) as (service, feeder, pushes, pool):
        service.serve(0)
        dying.dies_after = 3
        feeder.published(0)
        feeder.next(service.rescue)
        assert (pool.lost, dying.restarts, pushes.pushes) == (1, 1, [(0, False)]), "the other one was enough"
        recovered(feeder, pool)
        service.serve(1)
        assert (pool.lost, dying.version, other.version) == (0, 1, 1)


def test_where_no_engine_is_left_the_trainers_wait_ends_with_the_same_weights_and_groups() -> None:
    def collected(dies_after: int | None) -> tuple[list[Any], StandInTrainer]:
        engine = StandInEngine()
        with serving(engine) as (service, feeder, pushes, _):
            service.serve(5)
            engine.dies_after = dies_after
            feeder.published(0)
            groups = feeder.next(service.rescue).groups
            return [[sample.completion for sample in group.initial] for group in groups], pushes

    expected, undisturbed = collected(None)
    found, disturbed = collected(4)
    assert found == expected
    assert (undisturbed.pushes, disturbed.pushes) == ([(5, False)], [(5, False), (5, False)])


def test_nobody_waits_for_a_lost_engine_while_another_runs() -> None:
    lost, other = SlowToStart(), StandInEngine()
    with serving(lost, other) as (service, feeder, pushes, pool):
        service.serve(0)
        lost.dies_after = 3
        feeder.published(0)
        feeder.next(service.rescue)
        service.serve(1)
        feeder.published(1)
        feeder.next(service.rescue)
        service.serve(1)
        service.serve(2)
        assert pushes.pushes == [(0, False), (1, False), (2, False)]
        assert (lost.version, other.version, pool.lost, pool.starting, pushes.joins) == (None, 2, 1, 1, 1)
        feeder.published(2)
        finished = len(lost.finished)
        feeder.next(service.rescue)
        assert len(lost.finished) == finished
        lost.may_start.set()
        recovered(feeder, pool)
        assert (lost.version, pool.lost) == (None, 1), "it waits for the next push"
        service.serve(3)
        assert (lost.version, other.version, pool.lost, pushes.joins) == (3, 3, 0, 2)


def test_a_push_that_finds_an_engine_dead_goes_to_the_others_at_once_and_to_that_one_with_the_next() -> None:
    dead, other = SlowToStart(), StandInEngine()
    with serving(other, dead) as (service, feeder, pushes, pool):
        service.serve(0)
        dead.kill()
        service.serve(1)
        assert pushes.pushes == [(0, False), (1, False), (1, False)]
        assert (dead.version, other.version, dead.restarts, other.restarts, pool.lost) == (None, 1, 1, 0, 1)
        dead.may_start.set()
        recovered(feeder, pool)
        service.serve(1)
        assert (dead.version, other.version, pool.lost, len(pushes.pushes)) == (1, 1, 0, 4)


def test_a_push_waits_for_one_engine_where_none_is_left_and_not_for_all() -> None:
    slow, quick = SlowToStart(), StandInEngine()
    with serving(slow, quick) as (service, _, pushes, pool):
        service.serve(0)
        slow.kill()
        quick.kill()
        service.serve(1)
        assert (quick.version, slow.version, pool.lost, pool.starting) == (1, None, 1, 1)
        assert pushes.pushes == [(0, False), (1, False), (1, False)]


@pytest.mark.parametrize("whose", ["policy", "critic"])
@pytest.mark.parametrize("asked", ["rescue", "serve"])
def test_an_engine_that_does_not_start_again_ends_the_run_though_others_serve(whose: str, asked: str) -> None:
    class Broken(StandInEngine):
        async def ready(self) -> None:
            raise EngineStartError("no memory is left")

    broken, other = Broken(), StandInEngine()
    engines, critics = (broken, other), None
    if whose == "critic":
        broken.version = other.version = 9
        engines, critics = (StandInEngine(),), EnginePool([broken, other], 60.0, 60.0, own_weights=True)
    with serving(*engines, critics=critics) as (service, feeder, _, pool):
        service.serve(0)
        broken.dies_after = 0
        asked_pool = critics or pool
        while not asked_pool.lost:
            feeder.run(asked_pool.generate(GenerateRequest([1], 1, 3, 4)))
        with pytest.raises(EngineStartError, match="no memory is left"):
            feeder.run(asked_pool.recover())
        with pytest.raises(EngineStartError, match="no memory is left"):
            if asked == "rescue":
                service.rescue()
            else:
                service.serve(1)


def test_an_engine_that_dies_in_every_push_ends_the_run() -> None:
    class Fragile(StandInEngine):
        def load(self, version: int) -> None:
            self.kill()
            super().load(version)

    with serving(Fragile()) as (service, _, pushes, _):
        with pytest.raises(EngineDied, match="the push found it dead"):
            service.serve(0)
        assert len(pushes.pushes) == 2


@pytest.mark.parametrize("noticed", [True, False])
def test_an_engine_that_was_started_again_joins_the_transfer_with_all_others(noticed: bool) -> None:
    """As with NCCL: who was not in the communicator from its start on gets nothing, and says so first."""

    class Group(StandInTrainer):
        members: list[int]

        def join(self, engines: Sequence[Engine]) -> None:
            super().join(engines)
            self.members = [engine.restarts for engine in self._engines]

        def push(self, version: int, base: bool = False) -> None:
            if self.members != [engine.restarts for engine in self._engines]:
                raise EngineNotJoined("started again")
            super().push(version, base)

    dying, other = StandInEngine(), StandInEngine()
    with serving(other, dying, trainer=Group) as (service, feeder, pushes, pool):
        pushes.join(pool.engines)
        service.serve(0)
        if noticed:
            dying.dies_after = 3
            feeder.published(0)
            feeder.next(service.rescue)
            recovered(feeder, pool)
        else:  # its process was replaced between two pushes
            dying.version, dying.restarts = None, 1
        service.serve(1)
        assert (dying.version, other.version, dying.restarts, pool.lost, pushes.joins) == (1, 1, 1, 0, 2)
        service.serve(2)
        assert pushes.joins == 2, "once is enough"


def test_an_engine_that_dies_before_it_joins_again_costs_the_others_nothing() -> None:
    class Group(StandInTrainer):
        def join(self, engines: Sequence[Engine]) -> None:
            super().join(engines)
            for engine in self._engines:
                if not engine.living:
                    raise EngineDied("joined by none")

    fragile, lost, other = SlowToStart(), SlowToStart(), StandInEngine()
    with serving(fragile, lost, other, trainer=Group) as (service, feeder, pushes, pool):
        service.serve(0)
        lost.kill()
        service.serve(1)
        lost.may_start.set()
        recovered(feeder, pool)
        fragile.kill()
        service.serve(2)  # all three would join
        assert (fragile.version, lost.version, other.version, pool.lost) == (None, 2, 2, 1)
        service.serve(3)
        assert (lost.version, other.version, pushes.joins) == (3, 3, 3)


def test_idle_is_the_share_of_the_engines_time_since_it_was_asked_last() -> None:
    idle = iter([4.0, 7.0, 7.0])
    pool = SimpleNamespace(idle_seconds=lambda: next(idle), engines=[None, None])
    service = WeightService(cast(System, SimpleNamespace(pool=pool)), cast(Feeder, None), Timer())
    assert service.idle_share(10.0) == pytest.approx(4 / 20)
    assert service.idle_share(2.0) == pytest.approx(3 / 4)
    assert service.idle_share(5.0) == 0


def test_engines_sleep_before_anything_was_pushed_and_are_not_rescued_from_it() -> None:
    engine = StandInEngine()
    with serving(engine) as (service, _, pushes, pool):
        service.sleep()
        service.sleep()
        service.rescue()
        assert engine.sleeps == 1 and pushes.pushes == []
        service.serve(0)
        service.sleep()
        service.rescue()
        assert engine.sleeps == 2 and pushes.pushes == [(0, False)]
        service.serve(0)
        assert pushes.pushes == [(0, False)] * 2 and pool.lost == 0


def test_an_engine_that_was_lost_is_brought_back_where_the_same_weights_go_on_to_be_served() -> None:
    dying, other = StandInEngine(), StandInEngine()
    with serving(dying, other) as (service, feeder, pushes, pool):
        service.serve(0)
        dying.dies_after = 1
        feeder.published(0)
        feeder.next(service.rescue)
        assert pool.lost == 1
        recovered(feeder, pool)
        service.serve(0)
        assert (pool.lost, dying.version, pushes.pushes) == (0, 0, [(0, False)] * 2)


def test_a_critics_engine_comes_back_by_itself() -> None:
    critic = StandInEngine()
    critic.version = critic.own = 9
    critics = EnginePool([critic], 60.0, 60.0, own_weights=True)
    with serving(StandInEngine(), critics=critics) as (service, feeder, pushes, _):
        service.serve(0)
        critic.dies_after = 0
        [completion] = feeder.run(critics.generate(GenerateRequest([1], 1, 3, 4)))
        assert completion.versions[0].version == 9
        assert (critics.lost, critic.restarts, pushes.pushes) == (0, 1, [(0, False)])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("asked", ["rescue", "serve"])
def test_the_wait_for_an_engine_can_be_ended(asked: str) -> None:
    class Slow(StandInEngine):
        async def ready(self) -> None:
            await asyncio.Event().wait()

    def stop() -> None:
        if engine.restarts:
            raise Stopped

    engine = Slow()
    with serving(engine) as (service, feeder, _, pool):
        service.serve(0)
        engine.dies_after = 2
        feeder.published(0)
        while not pool.stranded:
            time.sleep(0.001)
        wait = service.rescue if asked == "rescue" else partial(service.serve, 1)
        with pytest.raises(Stopped):
            wait(poll=stop)


def test_a_slow_push_costs_an_engine_that_waits_for_its_end_nothing() -> None:
    """It finishes nothing before the push has succeeded, which takes longer than an engine may, and two attempts."""
    pushed = threading.Event()

    class Healthy(StandInEngine):
        async def generate(self, request: GenerateRequest) -> list[Completion]:
            while not pushed.is_set():
                await asyncio.sleep(0.001)
            return await super().generate(request)

    class DiesInThePush(StandInEngine):
        def load(self, version: int) -> None:
            if version == 1 and not self.restarts:
                self.kill()
            super().load(version)

    class Slow(StandInTrainer):
        def push(self, version: int, base: bool = False) -> None:
            time.sleep(version * TIMEOUT_S)
            super().push(version, base)

    healthy, dying = Healthy(), DiesInThePush()
    with serving(healthy, dying, trainer=Slow, progress_timeout_s=TIMEOUT_S) as (service, feeder, pushes, pool):
        service.serve(0)
        feeder.published(0)
        service.serve(1)
        pushed.set()
        assert len(feeder.next(service.rescue).groups) == 2
        assert (healthy.restarts, dying.restarts, healthy.version) == (0, 1, 1)
        assert pushes.pushes == [(0, False), (1, False), (1, False)]
