"""The feeder with a real collector, on a generator that the tests hold back and let go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.rollout.collect import Collector
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.trainer.feeder import Batch, Feeder
from megatron_cgrpo.types import Completion, FinishReason, Prompt, Verdict, VersionSpan

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
PROMPTS = [Prompt(f"p{i}", "", [i + 2], "") for i in range(7)]
PER_STEP, STEPS = 3, 6


class Policy:
    """Says one token, by its seed. ``hold`` keeps what is asked of a step until it is let go."""

    def __init__(self) -> None:
        self.version = 0
        self.begun: dict[int, int] = {}
        self.held: dict[int, asyncio.Event] = {}
        self.in_flight = 0

    def hold(self, step: int) -> None:
        self.held[step] = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        assert request.key is not None
        self.begun.setdefault(request.key.step, self.version)
        self.in_flight += 1
        try:
            await asyncio.sleep(0)
            if request.key.step in self.held:
                await self.held[request.key.step].wait()
        finally:
            self.in_flight -= 1
        return [Completion([request.seed % 4], [-1.0], FinishReason.STOP, (VersionSpan(self.version, 1),))]


class OneInFour:
    """A quarter of what can be said is right."""

    async def verify(self, prompt: Prompt, response: str, reason: FinishReason) -> Verdict:
        return Verdict(float(response == "0"), "correct" if response == "0" else "wrong")


def recipe(staleness: int, *overrides: str) -> Recipe:
    settings = (f"train.staleness={staleness}", f"train.steps={STEPS}", f"train.prompts_per_step={PER_STEP}")
    return load_recipe(RECIPE, [*settings, "critic.kind=none", "algorithm.preset=r1_drgrpo", *overrides])


def collector(policy: Policy, of: Recipe) -> Collector:
    return Collector(policy, OneInFour(), lambda step: None, of, lambda ids: str(ids[0]))  # type: ignore[arg-type]


def feeder(policy: Policy, of: Recipe, **options: Any) -> Feeder:
    return Feeder(collector(policy, of), sampler(of), of, 1, **options)


def sampler(of: Recipe) -> PromptSampler:
    per_step = len(PROMPTS) if of.rollout.dynamic_sampling.enabled else PER_STEP
    return PromptSampler(PROMPTS, of.seed, per_step)


def trained(policy: Policy, feed: Feeder, steps: int = STEPS) -> Iterator[Batch]:
    """A trainer: each batch makes the next version."""
    feed.published(0)
    for step in range(1, steps + 1):
        yield feed.next(lambda: None)
        policy.version = step
        feed.published(step)


def content(batch: Batch) -> Any:
    return [(group.prompt.id, [sample.completion.token_ids for sample in group.initial]) for group in batch.groups]


def synchronous(of: Recipe) -> list[Any]:
    """The same steps one after the other, each in a loop of its own, and the data position after each."""
    policy, position, result = Policy(), sampler(of), []
    for step in range(1, STEPS + 1):
        collected = asyncio.run(collector(policy, of).collect(position.for_step(), PER_STEP, step))
        position.advance(collected.consumed)
        groups = [(group.prompt.id, [one.completion.token_ids for one in group.initial]) for group in collected.groups]
        result.append((step, groups, position.state()))
    return result


def nothing_left() -> bool:
    return "feeder" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_every_staleness_gives_the_synchronous_steps_in_their_order(staleness: int, dynamic: bool) -> None:
    of, policy = recipe(staleness, f"rollout.dynamic_sampling.enabled={str(dynamic).lower()}"), Policy()
    with feeder(policy, of) as feed:
        fed = [(batch.step, content(batch), batch.sampler) for batch in trained(policy, feed)]
    assert fed == synchronous(of)
    assert nothing_left() and policy.in_flight == 0


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_a_step_begins_with_the_oldest_version_that_it_may_have_and_not_before(staleness: int) -> None:
    policy = Policy()
    with feeder(policy, recipe(staleness)) as feed:
        for version in range(STEPS + 1):
            policy.version = version
            feed.published(version)
            while len(policy.begun) < min(STEPS, version + 1 + staleness):
                time.sleep(0.005)
            if version < STEPS:
                assert feed.next(lambda: None).step == version + 1
            assert len(policy.begun) <= version + 1 + staleness, "no more than staleness + 1 steps are under way"
    assert policy.begun == {step: max(0, step - 1 - staleness) for step in range(1, STEPS + 1)}


def test_collection_goes_on_while_the_trainer_is_busy() -> None:
    policy = Policy()
    with feeder(policy, recipe(2)) as feed:
        feed.published(0)
        first = feed.next(lambda: None)
        while len(policy.begun) < 3 or policy.in_flight:
            time.sleep(0.01)  # the trainer trains
        second = feed.next(lambda: None)
    assert (first.step, second.step, second.depth) == (1, 2, 1)
    assert second.held > 0 and first.held == 0


class Broken(Exception):
    pass


class Fails(Policy):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.failed = step, False

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if request.key is not None and request.key.step == self.step:
            self.failed = True
            raise Broken(f"step {self.step}")
        return await super().generate(request)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("failing", [1, 3, STEPS])
def test_an_error_of_a_step_reaches_the_trainer_as_it_is_when_it_asks_for_that_step(
    failing: int, staleness: int, dynamic: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy, batches = Fails(failing), list[int]()
    of = recipe(staleness, f"rollout.dynamic_sampling.enabled={str(dynamic).lower()}")
    with feeder(policy, of) as feed:
        with pytest.raises(Broken, match=f"step {failing}"):
            for batch in trained(policy, feed):
                batches.append(batch.step)
        with pytest.raises(Broken):
            feed.next(lambda: None)
    assert batches == list(range(1, failing))
    assert nothing_left() and policy.in_flight == 0 and not caplog.records


def test_a_step_that_is_being_trained_is_evaluated_and_none_is_begun_after_a_later_one_has_failed() -> None:
    policy = Fails(3)

    async def evaluation() -> int:
        return 7

    with feeder(policy, recipe(2)) as feed:
        feed.published(0)
        feed.next(lambda: None)
        while not policy.failed:
            time.sleep(0.01)
        assert feed.run(evaluation()) == 7
        feed.published(1)
        assert feed.next(lambda: None).step == 2, "what is complete is trained"
        assert sorted(policy.begun) == [1, 2]


def test_leaving_abandons_what_is_not_complete() -> None:
    policy = Policy()
    policy.hold(1)
    with feeder(policy, recipe(1)) as feed:
        feed.published(0)
        while len(policy.begun) < 2:
            time.sleep(0.01)
    assert nothing_left() and policy.in_flight == 0


def test_a_wait_that_the_trainer_breaks_off_loses_no_batch() -> None:
    policy, polls = Policy(), Counter[str]()
    policy.hold(1)

    def poll() -> None:
        polls["asked"] += 1
        if polls["asked"] == 2:
            raise KeyboardInterrupt

    with feeder(policy, recipe(0)) as feed:
        feed.published(0)
        with pytest.raises(KeyboardInterrupt):
            feed.next(poll)
        feed.run(let_go(policy, 1))
        assert feed.next(lambda: None).step == 1


async def let_go(policy: Policy, step: int) -> None:
    policy.held[step].set()


def test_other_work_runs_beside_the_collection_and_its_errors_are_its_own() -> None:
    policy = Policy()
    policy.hold(1)

    async def evaluation() -> int:
        await let_go(policy, 1)
        while policy.in_flight:
            await asyncio.sleep(0)
        return 7

    async def fails() -> None:
        raise Broken

    with feeder(policy, recipe(0)) as feed:
        feed.published(0)
        with pytest.raises(Broken):
            feed.run(fails())
        while not policy.in_flight:
            time.sleep(0.01)
        assert feed.run(evaluation()) == 7
        assert feed.next(lambda: None).step == 1


def test_an_abandoned_run_collects_no_more_but_can_still_be_evaluated() -> None:
    policy = Policy()
    policy.hold(2)
    with feeder(policy, recipe(1)) as feed:
        feed.published(0)
        feed.next(lambda: None)
        feed.abandon()

        async def evaluation() -> int:
            return policy.in_flight

        while feed.run(evaluation()):
            pass
        assert sorted(policy.begun) == [1, 2]


def test_steps_that_are_collected_together_share_the_wall_clock() -> None:
    policy, since = Policy(), time.perf_counter()
    usage = iter(range(1, 100))
    with feeder(policy, recipe(5), take_usage=lambda: {"paid": float(next(usage))}) as feed:
        batches = list(trained(policy, feed))
        elapsed = time.perf_counter() - since
    assert 0 < sum(batch.seconds for batch in batches) <= elapsed
    assert all(batch.seconds > 0 and batch.prompts == PER_STEP for batch in batches)
    assert sorted(batch.usage["paid"] for batch in batches) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
