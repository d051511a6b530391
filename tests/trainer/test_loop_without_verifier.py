"""The loop where the verifier breaks down: nothing is trained, and what was trained can go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.trainer.budget import ComputeBudget
from megatron_cgrpo.trainer.loop import TrainingLoop
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.signals import StopSignal
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.trainer.verdicts import VerifierFailed
from megatron_cgrpo.types import Completion, FinishReason, Verdict

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"


class Engines:
    """Answers everything with one token."""

    lost, stranded = 0, False
    engines = ("one",)

    def idle_seconds(self) -> float:
        return 0.0

    def check_starts(self) -> None: ...

    async def updating(self) -> None: ...

    async def updated(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        return [Completion([1], [-1.0], FinishReason.STOP)] * request.n


async def broken(*_: Any) -> Verdict:
    return Verdict(0.0, "error:worker")


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_step_without_verdicts_ends_the_run_saved_and_its_prompts_come_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, staleness: int
) -> None:
    settings = ["critic.kind=none", "task.train_problems=64", "task.test_problems=4", f"train.staleness={staleness}"]
    recipe = load_recipe(RECIPE, [*settings, "algorithm.refinements=0"])
    saved: list[tuple[int, Any]] = []
    record = SimpleNamespace(
        directory=tmp_path,
        last_step=3,
        last_saved=2,
        has_base_evaluation=True,
        origin=dict,
        metrics=lambda: [{"step": 0}],
        save_checkpoint=lambda step, sampler, write: saved.append((step, sampler)),
    )
    with Problems.load(recipe) as problems, StopSignal() as stop:
        monkeypatch.setattr(problems.task, "verify", broken)
        sampler = PromptSampler(problems.train, recipe.seed, problems.per_step(recipe))
        sampler.advance(5)
        before = sampler.state()
        # An actor that can do nothing but give its weights away: it must not be asked to train.
        actor = cast(ActorGroup, SimpleNamespace(push=lambda *_, **__: None, save=None))
        system = System(actor, cast(EnginePool, Engines()))
        loop = TrainingLoop(recipe, system, problems, sampler, cast(Record, record), stop, ComputeBudget(None))
        with pytest.raises(VerifierFailed, match="step 4: the verifier failed on .* error:worker"):
            loop.run()
    assert saved == [(3, before)]
