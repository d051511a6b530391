"""Who gets weights when, with a real feeder and pool; the engines and the trainer's push are the test's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from megatron_cgrpo.rollout.protocol import EngineDied
from megatron_cgrpo.trainer.feeder import Feeder
from megatron_cgrpo.trainer.serving import Serving, oldest_version, sampled_version
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.types import FinishReason, Prompt, Verdict

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
PROMPTS = [Prompt(f"p{i}", "", [i + 2], "") for i in range(4)]


class AlwaysWrong:
    async def verify(self, prompt: Prompt, response: str, reason: FinishReason) -> Verdict:
        return Verdict(0.0, "wrong")


def recipe(*overrides: str) -> Recipe:
    settings = ("critic.kind=none", "algorithm.preset=r1_drgrpo", "train.prompts_per_step=2", "train.steps=3")
    return load_recipe(RECIPE, [*settings, *overrides])


@contextmanager
def serving(*engines: StandInEngine) -> Iterator[tuple[Serving, Feeder, StandInTrainer, EnginePool]]:
    of, pool, pushes = recipe(), EnginePool(engines, 60.0, 60.0), StandInTrainer(engines)
    collector = Collector(pool, cast(Any, AlwaysWrong()), lambda step: None, of, str)
    system = System(cast(ActorGroup, pushes), pool)
    with Feeder(collector, PromptSampler(PROMPTS, 0), of, 1) as feeder:
        yield Serving(system, feeder, Timer()), feeder, pushes, pool


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


def test_an_engine_that_died_unnoticed_is_found_by_the_push_and_gets_the_weights_with_the_next() -> None:
    dead, other = StandInEngine(), StandInEngine()
    with serving(other, dead) as (service, _, pushes, pool):
        service.serve(0)
        dead.kill()
        service.serve(1)
        assert pushes.pushes == [(0, False), (1, False), (1, False)]
        assert (dead.version, other.version, dead.restarts, other.restarts, pool.lost) == (1, 1, 1, 0, 0)


def test_an_engine_that_dies_in_every_push_ends_the_run() -> None:
    class Fragile(StandInEngine):
        def load(self, version: int) -> None:
            self.kill()
            super().load(version)

    with serving(Fragile()) as (service, _, pushes, _):
        with pytest.raises(EngineDied, match="the push found it dead"):
            service.serve(0)
        assert len(pushes.pushes) == 2


def test_idle_is_the_share_of_the_engines_time_since_it_was_asked_last() -> None:
    idle = iter([4.0, 7.0, 7.0])
    pool = SimpleNamespace(idle_seconds=lambda: next(idle), engines=[None, None])
    service = Serving(cast(System, SimpleNamespace(pool=pool)), cast(Feeder, None), Timer())
    assert service.idle_share(10.0) == pytest.approx(4 / 20)
    assert service.idle_share(2.0) == pytest.approx(3 / 4)
    assert service.idle_share(5.0) == 0


@pytest.mark.parametrize(("staleness", "oldest"), [(0, [0, 1, 8]), (1, [0, 0, 7]), (4, [0, 0, 4])])
def test_versions_of_a_step(staleness: int, oldest: list[int]) -> None:
    of = recipe(f"train.staleness={staleness}")
    assert [oldest_version(of, step) for step in (1, 2, 9)] == oldest
    assert [sampled_version(of, step) for step in (1, 2, 9)] == [0, 1, 8]
    assert sampled_version(load_recipe(RECIPE, ["algorithm.preset=raft", "critic.kind=none"]), 9) == 0
