"""From tables and seeds to jobs, in the order in which they run, and to the ``study.json`` that describes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from study.arms import ARMS, BASE_MODELS
from study.jobs import Analyse, BaseModel, Job, MakeModel, PassAtK, Rescue, SelfCritique, Train
from study.paper import NOTES, PASS_AT_K, PASS_AT_K_ARMS, RESCUE, SELF_CRITIQUE, SELF_CRITIQUE_ARMS, TABLES

from megatron_cgrpo.report.study import Study, StudyArm, StudyJob, StudyRun, StudyScores

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
TITLE = "Critique-GRPO on the sandbox task"
DEFAULTS = (
    # Two jobs at once, of a process each, use two cores better than one job of two.
    "rollout.engines=1",
    "parallel.tp=1",
    "warm_start.dp=1",
    # Of 40 steps of 40 prompts, the second half asks every question again: some analyses need that.
    "task.train_problems=800",
    "observe.gradients_every=10",
)
PASS_AT_K_SAMPLES = 256
PASS_AT_K_PROMPTS = 64
_FOLDERS = {PASS_AT_K: "pass_at_k", SELF_CRITIQUE: "self_critique"}


@dataclass(frozen=True)
class Plan:
    """``overrides`` hold for every job, above ``DEFAULTS`` and below what the study itself sets."""

    out: Path
    seeds: tuple[int, ...]
    tables: tuple[str, ...]
    steps: int
    overrides: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Each once, in the order in which the tables need them; what an arm needs comes before it."""
        rows = [row.arm for name in self.tables if name in TABLES for row in TABLES[name].rows]
        for name, arms in ((PASS_AT_K, PASS_AT_K_ARMS), (SELF_CRITIQUE, SELF_CRITIQUE_ARMS)):
            rows += arms if name in self.tables else ()
        wanted: list[str] = []
        for arm in (arm for arm in rows if arm is not None):
            wanted += [need for need in ARMS[arm].needs if need in ARMS] + [arm]
        return list(dict.fromkeys(wanted))

    def jobs(self) -> list[Job]:
        """A whole seed before the next, so that an early stop leaves complete tables of fewer seeds."""
        return [job for seed in self.seeds for job in self._of_seed(seed)]

    def study(self, command: str, failures: Mapping[str, str]) -> Study:
        """``failures``: sentences by the name of the job."""
        arms = {
            arm: StudyArm(
                label=ARMS[arm].label,
                runs=tuple(StudyRun(seed=seed, directory=_run(arm, seed)) for seed in self.seeds),
            )
            for arm in self.arms
        }
        return Study(
            title=TITLE,
            commands=(command,),
            arms=arms,
            tables=tuple(TABLES[name] for name in self.tables if name in TABLES),
            rescue=tuple(_rescue(seed) for seed in self.seeds if RESCUE in self.tables),
            pass_at_k=tuple(self._scores(PASS_AT_K, PASS_AT_K_ARMS)),
            self_critique=tuple(self._scores(SELF_CRITIQUE, SELF_CRITIQUE_ARMS)),
            notes=NOTES,
            jobs={
                job.name: StudyJob(command=("mcgrpo", *job.command), failure=failures.get(job.name))
                for job in self.jobs()
            },
        )

    def _of_seed(self, seed: int) -> Iterator[Job]:
        """All but other base models need the policy's, whose making two of them at once would both begin."""
        base = BaseModel(f"models/base/seed_{seed}.txt", self.out, self._command("sample", seed, (), ("-n", "1")))
        yield base
        for job in self._after_base(seed):
            yield job if isinstance(job, MakeModel) else replace(job, needs=(base.name, *job.needs))

    def _after_base(self, seed: int) -> Iterator[Job]:
        if RESCUE in self.tables:
            file = _rescue(seed)
            options = ("--samples", "4", "--out", str(self.out / file))
            yield Rescue(file, self.out, self._command("rescue", seed, (), options))
        for size in dict.fromkeys(need for arm in self.arms for need in ARMS[arm].needs if need not in ARMS):
            yield self._model(size.removeprefix("models/"), seed)
        for arm in self.arms:
            yield self._train(arm, seed)
            run = _run(arm, seed)
            yield Analyse(f"{run}/analysis.json", self.out, ("analyse", str(self.out / run)), (run,))
        if PASS_AT_K in self.tables:
            settings = (f"evaluation.final_samples={PASS_AT_K_SAMPLES}", f"evaluation.prompts={PASS_AT_K_PROMPTS}")
            for model in PASS_AT_K_ARMS:
                yield PassAtK(_file(PASS_AT_K, model, seed), self.out, *self._evaluation(model, seed, settings))
        if SELF_CRITIQUE in self.tables:
            settings = ("critic.source=self", "evaluation.final_samples=4")
            for model in SELF_CRITIQUE_ARMS:
                command, needs = self._evaluation(model, seed, settings, "--self-critique")
                yield SelfCritique(_file(SELF_CRITIQUE, model, seed), self.out, command, needs)

    def _train(self, arm: str, seed: int) -> Train:
        name, middle = _run(arm, seed), max(self.steps // 2, 1)
        settings = [
            f"run.dir={self.out / name}",
            f"train.steps={ARMS[arm].times_steps * self.steps}",
            f"evaluation.every={middle}",
            f"checkpoint.every={middle}",
            "checkpoint.keep_last=1",
            "observe.live=false",
            "observe.tensorboard=false",
            *(override.format(out=self.out, seed=seed, later=middle + 1) for override in ARMS[arm].overrides),
        ]
        needs = tuple(f"{need}/seed_{seed}" for need in ARMS[arm].needs)
        return Train(name, self.out, self._command("train", seed, settings), needs)

    def _model(self, size: str, seed: int) -> MakeModel:
        name = f"models/{size}/seed_{seed}"
        settings = (*BASE_MODELS[size], f"warm_start.cache_dir={MakeModel.cache(self.out / name)}")
        return MakeModel(name, self.out, self._command("sample", seed, settings, ("-n", "1")))

    def _evaluation(
        self, arm: str | None, seed: int, settings: Sequence[str], *options: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(command, what it needs) for the last checkpoint of an arm, or for the base model."""
        if arm is None:
            return self._command("eval", seed, settings, (*options, "--json")), ()
        checkpoint = self.out / _run(arm, seed) / "checkpoints" / f"step_{self.steps:06d}"
        options = (*options, "--checkpoint", str(checkpoint), "--json")
        return self._command("eval", seed, settings, options), (_run(arm, seed),)

    def _command(self, name: str, seed: int, settings: Sequence[str], options: Sequence[str] = ()) -> tuple[str, ...]:
        seeds = [f"{key}={seed}" for key in ("seed", "task.seed", "warm_start.seed")]
        return name, str(RECIPE), *seeds, *DEFAULTS, *self.overrides, *settings, *options

    def _scores(self, name: str, arms: Sequence[str | None]) -> Iterator[StudyScores]:
        if name in self.tables:
            for arm in arms:
                label = "base model" if arm is None else ARMS[arm].label
                yield StudyScores(label=label, files=tuple(_file(name, arm, seed) for seed in self.seeds))


def shell(job: Job) -> str:
    """The command as it would be typed."""
    return shlex.join(("mcgrpo", *job.command))


def _run(arm: str, seed: int) -> str:
    return f"{arm}/seed_{seed}"


def _rescue(seed: int) -> str:
    return f"rescue/seed_{seed}.json"


def _file(table: str, arm: str | None, seed: int) -> str:
    return f"{_FOLDERS[table]}/{arm or 'base'}/seed_{seed}.json"
