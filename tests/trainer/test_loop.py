"""The whole loop on a system without models: what is asked, trained and written, also when it is cut off."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from small_disk import fill, small_disk
from stand_ins import StandInEngine, StandInTrainer
from tiny_sandbox import TINY_SANDBOX

from megatron_cgrpo.actor.calls import TrainerDied
from megatron_cgrpo.actor.group import ActorGroup
from megatron_cgrpo.actor.group_update import GroupUpdate
from megatron_cgrpo.algorithm.spec import LossSpec
from megatron_cgrpo.config.loading import load_recipe
from megatron_cgrpo.config.recipe import Recipe
from megatron_cgrpo.data.sampler import PromptSampler
from megatron_cgrpo.observe.display import PlainDisplay
from megatron_cgrpo.observe.metrics import is_timing
from megatron_cgrpo.rollout.pool import EnginePool
from megatron_cgrpo.rollout.protocol import GenerateRequest
from megatron_cgrpo.trainer.batch import StepRows, build_rows
from megatron_cgrpo.trainer.budget import ComputeBudget
from megatron_cgrpo.trainer.guard import Collapsed
from megatron_cgrpo.trainer.loop import TrainingLoop
from megatron_cgrpo.trainer.problems import Problems
from megatron_cgrpo.trainer.record import Record
from megatron_cgrpo.trainer.signals import StopRequested, StopSignal
from megatron_cgrpo.trainer.system import System
from megatron_cgrpo.types import Completion, TrainRow

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
STEPS, PER_STEP = 5, 4


def recipe(directory: Path, *overrides: str) -> Recipe:
    return load_recipe(
        RECIPE,
        [
            *TINY_SANDBOX,
            f"run.dir={directory}",
            f"train.steps={STEPS}",
            f"train.prompts_per_step={PER_STEP}",
            "algorithm.group_size=3",
            "algorithm.kl.coef=0.01",  # what is all wrong trains too
            "checkpoint.every=2",
            "evaluation.every=2",
            "observe.tensorboard=false",
            "guard.action=off",
            *overrides,
        ],
    )


def train(
    settings: Recipe, engine: StandInEngine, *, resume: bool = False, trainer: type[StandInTrainer] = StandInTrainer
) -> list[dict[str, Any]]:
    """As ``run.py`` does it, with another system. The run's metrics, without timings."""
    model = Path(settings.run.dir).parent / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    with (
        Problems.load(settings) as problems,
        StopSignal() as stop,
        Record(settings, PlainDisplay(STEPS), resume=resume, poll=stop.check) as record,
    ):
        record.starts_from(model)
        sampler = PromptSampler(problems.train, settings.seed, problems.per_step(settings))
        if record.manifest is not None:
            sampler.load_state(record.manifest.sampler)
        system = System(cast(ActorGroup, trainer([engine])), EnginePool([engine], 60.0, 60.0))
        TrainingLoop(settings, system, problems, sampler, record, stop, ComputeBudget(None)).run()
        return [{key: value for key, value in line.items() if not is_timing(key)} for line in record.metrics()]


def ledger(settings: Recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(settings.run.dir) / "prompts.jsonl").read_text().splitlines()]


def prompts(settings: Recipe) -> list[str]:
    """In the order in which they are to be trained on."""
    with Problems.load(settings) as problems:
        upcoming = PromptSampler(problems.train, settings.seed, problems.per_step(settings)).upcoming()
        return [prompt.id for prompt in islice(upcoming, STEPS * PER_STEP)]


def test_a_synchronous_run_samples_from_the_policy_it_trains(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run")
    lines = train(settings, StandInEngine())
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert [line["versions"] for line in ledger(settings)] == [[step, step] for step in range(STEPS)]
    assert {(line["staleness.mean"], line["staleness.max"]) for line in lines[1:]} == {(0, 0)}
    assert all(("eval.pass_at_1" in line) == (line["step"] in (0, 2, 4, STEPS)) for line in lines)
    assert any(line["groups.critiqued"] for line in lines[1:]), "or nothing was refined"


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_stale_run_trains_the_same_prompts_on_policies_that_are_not_too_old(tmp_path: Path, staleness: int) -> None:
    settings = recipe(tmp_path / "run", f"train.staleness={staleness}")
    lines = train(settings, StandInEngine())
    assert [prompt for line in ledger(settings) for prompt in line["trained"]] == prompts(settings)
    for line in ledger(settings):
        oldest, newest = line["versions"]
        assert max(0, line["step"] - 1 - staleness) <= oldest <= newest < line["step"]
    assert max(line["staleness.max"] for line in lines[1:]) <= staleness
    assert lines[1]["staleness.max"] == 0


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("sound", [10, 47, 75])
def test_what_an_interrupted_run_has_sampled_is_not_asked_again(tmp_path: Path, staleness: int, sound: int) -> None:
    settings = recipe(tmp_path / "run", f"train.staleness={staleness}")
    first, second = StandInEngine(sound), StandInEngine()
    with pytest.raises(RuntimeError, match="broken"):
        train(settings, first)
    saved = max((int(path.name[-6:]) for path in (tmp_path / "run" / "checkpoints").glob("step_*")), default=0)
    lines = train(settings, second, resume=True)
    assert len(first.finished) == sound
    assert not set(first.finished) & set(second.finished)
    assert min(key.step for key, _ in second.finished) > saved
    assert [prompt for line in ledger(settings) for prompt in line["trained"]] == prompts(settings)
    assert list((tmp_path / "run" / "journal").glob("step_*")) == [], "the last checkpoint covers every step"
    if staleness == 0:
        straight = recipe(tmp_path / "straight")
        assert lines == train(straight, StandInEngine())
        assert ledger(settings) == ledger(straight)


def test_offline_data_come_from_the_base_and_evaluations_from_the_policy(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run", "algorithm.preset=raft", "critic.kind=none", "algorithm.kl.coef=0")
    engine = StandInEngine()
    lines = train(settings, engine)
    assert [line["versions"] for line in ledger(settings)] == [[0, 0]] * STEPS
    assert not any(key.startswith("staleness.") for line in lines for key in line)


class BreaksIn(StandInEngine):
    """Whatever is asked of it for ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        if request.key is not None and request.key.step == self.step:
            raise RuntimeError(f"broken in step {self.step}")
        return await super().generate(request)


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_a_step_that_cannot_be_collected_costs_none_before_it(tmp_path: Path, staleness: int, step: int) -> None:
    settings = recipe(tmp_path / "run", f"train.staleness={staleness}", "checkpoint.every=1")
    with pytest.raises(RuntimeError, match=f"broken in step {step}"):
        train(settings, BreaksIn(step))
    assert [line["step"] for line in ledger(settings)] == list(range(1, step))
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert saved[-1:] == ([f"step_{step - 1:06d}"] if step > 1 else [])
    assert len(train(settings, StandInEngine(), resume=True)) == STEPS + 1


SFT_FIRST = ("algorithm.preset=sft", "critic.kind=none", "stages=[{from_step: 4, algorithm: {preset: r1_drgrpo}}]")


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_stage_that_samples_begins_with_weights_of_the_one_that_does_not(tmp_path: Path, staleness: int) -> None:
    settings = recipe(tmp_path / "run", *SFT_FIRST, f"train.staleness={staleness}", "evaluation.every=0")
    train(settings, StandInEngine())
    assert [line["versions"] for line in ledger(settings)[:3]] == [None] * 3
    for line in ledger(settings)[3:]:
        assert line["step"] - 1 - staleness <= line["versions"][0] <= line["versions"][1] < line["step"]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_run_is_resumed_within_a_stage_that_samples_nothing(tmp_path: Path, staleness: int) -> None:
    settings = recipe(tmp_path / "run", *SFT_FIRST, f"train.staleness={staleness}", "evaluation.every=0")
    with pytest.raises(RuntimeError, match="broken in step 4"):
        train(settings, BreaksIn(4))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "2\n"
    assert [line["step"] for line in train(settings, StandInEngine(), resume=True)] == list(range(STEPS + 1))


KL, SFT = ("algorithm.kl.coef=0.01",), ("algorithm.preset=sft", "critic.kind=none", "algorithm.kl.coef=0")


@pytest.mark.parametrize(
    ("overrides", "empty", "expected"),
    [
        (KL, 0, [(False, True), (True, True), (True, True), (True, True)]),
        (KL, 2, [(False, True), (True, True)]),
        (SFT, 0, [(False, False)] * 4),
    ],
    ids=["all train", "the first two do not", "supervised"],
)
def test_the_old_policys_pass_is_made_for_all_updates_of_a_step_but_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    empty: int,
    expected: list[tuple[bool, bool]],
) -> None:
    """By update: whether rows have log-probabilities of the old policy, and of the reference."""
    updates: list[set[tuple[bool, bool]]] = []

    class Remembers(StandInTrainer):
        def update(self, rows: Sequence[TrainRow], loss: LossSpec) -> GroupUpdate:
            updates.append({(row.old_logprobs is not None, row.reference_logprobs is not None) for row in rows})
            return super().update(rows, loss)

    def some_empty(*arguments: Any) -> StepRows:
        rows = build_rows(*arguments)
        none: list[Any] = [[]] * empty
        return replace(rows, mini_batches=none + rows.mini_batches[empty:], trained=none + rows.trained[empty:])

    monkeypatch.setattr("megatron_cgrpo.trainer.loop.build_rows", some_empty)
    settings = recipe(tmp_path / "run", "train.updates_per_step=4", "train.steps=2", *overrides)
    train(settings, StandInEngine(), trainer=Remembers)
    assert updates == [{rows} for rows in expected] * 2


class TrainsBesideSleepers(StandInTrainer):
    """Colocated engines have left their devices to it."""

    def update(self, rows: Sequence[TrainRow], loss: LossSpec) -> GroupUpdate:
        assert all(engine.version is None for engine in self._engines)
        return super().update(rows, loss)


def test_colocated_engines_sleep_while_a_step_is_trained(tmp_path: Path) -> None:
    engine, apart = StandInEngine(), StandInEngine()
    shared = ("rollout.placement=colocated", "parallel.tp=1", "rollout.engines=1")
    lines = train(recipe(tmp_path / "run", *shared), engine, trainer=TrainsBesideSleepers)
    assert engine.sleeps == STEPS and apart.sleeps == 0
    assert lines == train(recipe(tmp_path / "apart", *shared[1:]), apart)


class LosesARankWhenItSaves(StandInTrainer):
    def save(self, directory: Path) -> None:
        raise TrainerDied("rank 0 died")


def test_a_rank_that_is_lost_at_the_end_does_not_hide_why_the_run_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = ("guard.action=stop", "guard.entropy_below=5", "guard.patience=2", "checkpoint.every=0")
    with pytest.raises(Collapsed, match="entropy.initial"):
        train(recipe(tmp_path / "run", *stopping), StandInEngine(), trainer=LosesARankWhenItSaves)
    assert "steps 1 to 2 are lost: rank 0 died" in caplog.text


def test_a_run_that_is_stopped_while_it_waits_for_space_keeps_its_checkpoint_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("megatron_cgrpo.trainer.record.STOPPED_PATIENCE_S", 0.0)
    with small_disk(tmp_path / "disk", 16) as disk:

        class FillsTheDisk(StandInTrainer):
            def update(self, rows: Sequence[TrainRow], spec: LossSpec) -> GroupUpdate:
                if self.pushes[-1] == (2, False):  # in the third step
                    fill(disk)
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().update(rows, spec)

        settings = recipe(disk / "run")
        with pytest.raises(StopRequested):
            train(settings, StandInEngine(), trainer=FillsTheDisk)
        assert "steps 3 to 3 are lost: the disk did not take the last one's line" in caplog.text
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step_000002"]
        (disk / "filler").unlink()
        assert train(settings, StandInEngine(), resume=True) == train(recipe(tmp_path / "straight"), StandInEngine())


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_that_reaches_into_the_next_epoch_asks_no_prompt_twice(tmp_path: Path, dynamic: bool) -> None:
    size = 6
    settings = recipe(
        tmp_path / "run",
        f"task.train_problems={size}",
        f"rollout.dynamic_sampling.enabled={str(dynamic).lower()}",
        "train.staleness=1",
    )
    train(settings, StandInEngine())
    drawn = [line["trained"] + line["replaced"] for line in ledger(settings)]
    assert all(len(set(step)) == len(step) >= PER_STEP for step in drawn)
    if not dynamic:
        order = [prompt for step in drawn for prompt in step]
        epochs = [set(order[start : start + size]) for start in range(0, len(order) - size + 1, size)]
        assert [len(epoch) for epoch in epochs] == [size] * (STEPS * PER_STEP // size)


def test_the_journal_of_another_model_is_not_used(tmp_path: Path) -> None:
    settings, second = recipe(tmp_path / "run", "checkpoint.every=0"), StandInEngine()
    with pytest.raises(RuntimeError, match="broken"):
        train(settings, StandInEngine(40))
    (tmp_path / "model" / "generation_config.json").write_text('{"another": "model"}')
    train(settings, second, resume=True)
    assert {key.step for key, _ in second.finished} == set(range(1, STEPS + 1))
    assert sum(key.step == 1 and key.stage == "generate" for key, _ in second.finished) == 3 * PER_STEP


def test_a_run_that_has_reached_its_end_can_be_resumed(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run")
    assert train(settings, StandInEngine()) == train(settings, BreaksIn(STEPS), resume=True)
