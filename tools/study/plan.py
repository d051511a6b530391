"""From tables and seeds to jobs, in the order in which they run, and to the ``study.json`` that describes them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from study.arms import ARMS, BASE_MODELS
from study.jobs import Job, MakeModel, PassAtK, Rescue, Train
from study.paper import PASS_AT_K, PASS_AT_K_ARMS, RESCUE, TABLES

from megatron_cgrpo.report.study import PassAtKCurve, Study, StudyArm, StudyRun

RECIPE = Path(__file__).parents[2] / "examples" / "sandbox.yaml"
TITLE = "Critique-GRPO on the sandbox task"
PASS_AT_K_SAMPLES = 256
PASS_AT_K_PROMPTS = 64


@dataclass(frozen=True)
class Plan:
    """``overrides`` hold for every job, below what the study itself sets."""

    out: Path
    seeds: tuple[int, ...]
    tables: tuple[str, ...]
    steps: int
    overrides: tuple[str, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Each once, in the order in which the tables need them; what an arm needs comes before it."""
        rows = [row.arm for name in self.tables if name in TABLES for row in TABLES[name].rows]
        if PASS_AT_K in self.tables:
            rows += PASS_AT_K_ARMS
        wanted: list[str] = []
        for arm in (arm for arm in rows if arm is not None):
            wanted += [need for need in ARMS[arm].needs if need in ARMS] + [arm]
        return list(dict.fromkeys(wanted))

    def jobs(self) -> list[Job]:
        """A whole seed before the next, so that an early stop leaves complete tables of fewer seeds."""
        return [job for seed in self.seeds for job in self._of_seed(seed)]

    def study(self, command: str, failures: Mapping[str, str]) -> Study:
        """``failures``: sentences by the name of the job."""
        by_name = {job.name: job for job in self.jobs()}
        arms = {
            arm: StudyArm(
                label=ARMS[arm].label,
                runs=tuple(
                    StudyRun(
                        seed=seed,
                        directory=_run(arm, seed),
                        command=("mcgrpo", *by_name[_run(arm, seed)].command),
                        failure=failures.get(_run(arm, seed)),
                    )
                    for seed in self.seeds
                ),
            )
            for arm in self.arms
        }
        trained = {_run(arm, seed) for arm in self.arms for seed in self.seeds}
        return Study(
            title=TITLE,
            command=command,
            arms=arms,
            tables=tuple(TABLES[name] for name in self.tables if name in TABLES),
            rescue=tuple(_rescue(seed) for seed in self.seeds if RESCUE in self.tables),
            pass_at_k=tuple(self._curves()),
            failures={name: reason for name, reason in failures.items() if name not in trained},
        )

    def _of_seed(self, seed: int) -> Iterator[Job]:
        if RESCUE in self.tables:
            file = _rescue(seed)
            options = ("--samples", "4", "--out", str(self.out / file))
            yield Rescue(file, self.out, self._command("rescue", seed, (), options))
        for size in dict.fromkeys(need for arm in self.arms for need in ARMS[arm].needs if need not in ARMS):
            yield self._model(size.removeprefix("models/"), seed)
        for arm in self.arms:
            yield self._train(arm, seed)
        if PASS_AT_K in self.tables:
            for arm in PASS_AT_K_ARMS:
                yield self._pass_at_k(arm, seed)

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
        settings = (*BASE_MODELS[size].settings, f"warm_start.cache_dir={MakeModel.cache(self.out / name)}")
        return MakeModel(name, self.out, self._command("sample", seed, settings, ("-n", "1")))

    def _pass_at_k(self, arm: str | None, seed: int) -> PassAtK:
        settings = [f"evaluation.final_samples={PASS_AT_K_SAMPLES}", f"evaluation.prompts={PASS_AT_K_PROMPTS}"]
        options, needs = ("--json",), ()
        if arm is not None:
            needs = (_run(arm, seed),)
            checkpoint = self.out / needs[0] / "checkpoints" / f"step_{self.steps:06d}"
            options = ("--checkpoint", str(checkpoint), "--json")
        return PassAtK(_curve(arm, seed), self.out, self._command("eval", seed, settings, options), needs)

    def _command(self, name: str, seed: int, settings: Sequence[str], options: Sequence[str] = ()) -> tuple[str, ...]:
        seeds = [f"{key}={seed}" for key in ("seed", "task.seed", "warm_start.seed")]
        return name, str(RECIPE), *seeds, *self.overrides, *settings, *options

    def _curves(self) -> Iterator[PassAtKCurve]:
        if PASS_AT_K in self.tables:
            for arm in PASS_AT_K_ARMS:
                label = "base model" if arm is None else ARMS[arm].label
                yield PassAtKCurve(label=label, files=tuple(_curve(arm, seed) for seed in self.seeds))


def shell(job: Job) -> str:
    """The command as it would be typed."""
    return shlex.join(("mcgrpo", *job.command))


def _run(arm: str, seed: int) -> str:
    return f"{arm}/seed_{seed}"


def _rescue(seed: int) -> str:
    return f"rescue/seed_{seed}.json"


def _curve(arm: str | None, seed: int) -> str:
    return f"pass_at_k/{arm or 'base'}/seed_{seed}.json"
