"""The study's plan, how its runner goes on after failures, and a small study from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from study.arms import ARMS
from study.jobs import BaseModel, Job, MakeModel, PassAtK, Rescue, Train
from study.paper import CHOICES, NOTES, TABLES
from study.plan import DEFAULTS, Plan
from study.record import Record
from study.runner import Clock, Interrupted, run_jobs
from tiny_sandbox import TINY_SANDBOX

from megatron_cgrpo.config import check_recipe, load_recipe, model_shape
from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_json, write_text
from megatron_cgrpo.report.embedded_task import TAUGHT
from megatron_cgrpo.report.study import Study, read_study

ROOT = Path(__file__).parents[2]
SANDBOX = ROOT / "examples" / "sandbox.yaml"
STEPS = 6


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path, (0, 1), CHOICES, STEPS)


def settings(job: Job) -> list[str]:
    return [argument for argument in job.command[2:] if "=" in argument and not argument.startswith("-")]


@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_arm_is_a_recipe_that_can_run(plan: Plan, name: str) -> None:
    [job] = [job for job in plan.jobs() if job.name == f"{name}/seed_1"]
    recipe = load_recipe(Path(job.command[1]), [s for s in settings(job) if not s.startswith("train.compute_of")])
    if name != "equal_compute":  # whose other run is not there yet
        check_recipe(recipe, model_shape(recipe))
    assert (recipe.seed, recipe.task.seed, recipe.warm_start.seed) == (1, 1, 1)
    assert recipe.run.dir == str(plan.out / name / "seed_1")
    assert recipe.train.steps == STEPS * ARMS[name].times_steps


def test_no_two_arms_are_the_same_training(plan: Plan) -> None:
    recipes = {}
    for job in plan.jobs():
        if isinstance(job, Train) and job.name.endswith("seed_0"):
            recipe = load_recipe(SANDBOX, [s for s in settings(job) if not s.startswith("run.dir")])
            whole = recipe.model_dump(mode="json")
            whole["algorithm"].pop("preset")
            recipes[json.dumps(whole, sort_keys=True, default=str)] = job.name
    assert len(recipes) == len(ARMS)


def test_an_arm_of_several_tables_is_trained_once_and_after_what_it_needs(plan: Plan) -> None:
    names = [job.name for job in plan.jobs()]
    assert len(names) == len(set(names))
    for job in plan.jobs():
        assert all(names.index(need) < names.index(job.name) for need in job.needs), job.name
    first = [name for name in names if "seed_0" in name]
    assert names[: len(first)] == first  # a seed is complete before the next begins


def test_every_row_has_a_number_for_each_of_the_papers_columns() -> None:
    for table in TABLES.values():
        assert all(len(row.paper) == len(table.paper_columns) for row in table.rows), table.name


def test_only_what_is_asked_for_is_run_and_every_run_is_analysed(tmp_path: Path) -> None:
    base, *jobs = Plan(tmp_path, (3,), ("compute",), STEPS).jobs()
    runs = ["r1_drgrpo/seed_3", "critique_grpo/seed_3", "equal_compute/seed_3"]
    assert [job.name for job in jobs] == [name for run in runs for name in (run, f"{run}/analysis.json")]
    assert jobs[4].needs == (base.name, "critique_grpo/seed_3")
    assert f"train.compute_of={tmp_path}/critique_grpo/seed_3" in jobs[4].command
    assert jobs[5].command == ("analyse", str(tmp_path / "equal_compute/seed_3")) and runs[2] in jobs[5].needs


def test_no_two_jobs_make_the_same_base_model_at_once(plan: Plan) -> None:
    for seed in plan.seeds:
        base, *others = [job for job in plan.jobs() if f"seed_{seed}" in job.name]
        assert isinstance(base, BaseModel)
        assert all(isinstance(job, MakeModel) or base.name in job.needs for job in others)
        assert any(isinstance(job, Rescue) for job in others)


def test_the_policy_criticises_itself_before_and_after_training(plan: Plan) -> None:
    before, after = [job for job in plan.jobs() if job.name.startswith("self_critique/") and "seed_0" in job.name]
    for job in (before, after):
        assert {"--self-critique", "critic.source=self", "--json"} <= set(job.command)
        assert load_recipe(SANDBOX, settings(job)).critic.sources == {"self"}
    assert "--checkpoint" not in before.command
    checkpoint = after.command[after.command.index("--checkpoint") + 1]
    assert checkpoint == str(plan.out / f"critique_grpo/seed_0/checkpoints/step_{STEPS:06d}")


def test_what_is_asked_for_outranks_the_defaults_of_the_study(tmp_path: Path) -> None:
    plan = Plan(tmp_path, (0,), CHOICES, STEPS, ("rollout.engines=3", "observe.gradients_every=2"))
    for job in plan.jobs():
        if isinstance(job, Train):
            recipe = load_recipe(SANDBOX, [s for s in settings(job) if not s.startswith("run.dir")])
            assert (recipe.rollout.engines, recipe.observe.gradients_every, recipe.parallel.tp) == (3, 2, 1)
            assert set(DEFAULTS) <= set(job.command)


def test_questions_come_again(plan: Plan) -> None:
    train = next(job for job in Plan(plan.out, (0,), ("compute",), 40).jobs() if isinstance(job, Train))
    recipe = load_recipe(SANDBOX, settings(train))
    assert recipe.train.steps * recipe.train.prompts_per_step >= 2 * recipe.task.train_problems


def test_every_table_says_what_follows_by_construction_and_which_gamma_was_run() -> None:
    assert all(TAUGHT in table.note for table in TABLES.values())
    assert TAUGHT in NOTES["rescue"] and TAUGHT in NOTES["pass_at_k"]
    for name in ("2", "6"):
        assert {"critique_grpo", "gamma_0.1"} <= {row.arm for row in TABLES[name].rows}
    for name, arm in ARMS.items():
        if name.startswith(("indicative", "critique_grpo", "gamma")):
            recipe = load_recipe(SANDBOX, arm.overrides)
            assert arm.label.endswith(f"γ {recipe.algorithm.refinement.gamma}")


def begin(plan: Plan, *failed: str) -> Study:
    record = Record(plan, f"paper_study --seeds {plan.seeds} --tables {plan.tables}")
    record.begin()
    if failed:
        record.update(dict.fromkeys(failed, "exit code 1"))
    study = read_study(plan.out)
    assert study is not None
    return study


def test_calls_with_other_seeds_and_tables_make_one_study(tmp_path: Path) -> None:
    begin(Plan(tmp_path, (1,), ("6", "self"), STEPS), "selection/seed_1", "models/base/seed_1.txt")
    study = begin(Plan(tmp_path, (0,), ("1", "2", "passk"), STEPS))
    assert [table.name for table in study.tables] == ["table_2", "table_6"]  # in the paper's order
    assert [run.seed for run in study.arms["critique_grpo"].runs] == [0, 1]
    assert [run.seed for run in study.arms["selection"].runs] == [1]
    assert study.rescue == ("rescue/seed_0.json",) and len(study.pass_at_k) == 3 and len(study.self_critique) == 2
    assert len(study.commands) == 2
    assert study.failure("selection/seed_1") == "exit code 1" and study.failure("selection/seed_0") is None
    again = begin(Plan(tmp_path, (0, 1), ("6",), STEPS))  # tries again what had failed
    assert again.failure("selection/seed_1") is None and set(study.jobs) < set(again.jobs)
    assert [run.seed for run in again.arms["selection"].runs] == [0, 1]


def test_a_study_is_written_by_one_call_at_a_time(tmp_path: Path) -> None:
    seeds = range(6)
    calls = [threading.Thread(target=begin, args=(Plan(tmp_path, (seed,), ("compute",), STEPS),)) for seed in seeds]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    study = read_study(tmp_path)
    assert study is not None and [run.seed for run in study.arms["equal_compute"].runs] == list(seeds)


@pytest.mark.parametrize(
    "name", ["rescue/seed_0.json", "pass_at_k/base/seed_0.json", "self_critique/base/seed_0.json", "sft/seed_0"]
)
def test_no_job_of_any_kind_is_mixed_with_other_settings(tmp_path: Path, name: str) -> None:
    plan = Plan(tmp_path, (0,), CHOICES, STEPS)
    begin(plan)
    other = Plan(tmp_path, (0,), CHOICES, STEPS, ("optimizer.lr=1",))
    begin(other)  # nothing has begun
    begin(plan)
    write_json(tmp_path / name / "config.yaml" if name == "sft/seed_0" else tmp_path / name, {})
    begin(Plan(tmp_path, (1,), ("8",), STEPS))  # forgets nothing
    with pytest.raises(ConfigError, match=f"{name} was started with other settings"):
        begin(other)
    assert "optimizer.lr=1" not in (tmp_path / "study.json").read_text()
    begin(plan)
    (tmp_path / "study.json").unlink()
    with pytest.raises(ConfigError, match=f"{name} is there, but study.json does not say how it was made"):
        begin(plan)


def test_an_interrupted_run_is_resumed_and_a_finished_one_is_not(tmp_path: Path) -> None:
    [_, job, *_] = Plan(tmp_path, (0,), ("compute",), STEPS).jobs()
    assert not job.started and "--resume" not in job.arguments()
    write_text(job.path / "config.yaml", "seed: 0\n")
    assert job.started and not job.finished and job.arguments()[-1] == "--resume"
    write_text(job.path / "summary.json", "{}")
    assert job.finished


def test_what_a_job_makes_is_put_in_its_place(tmp_path: Path) -> None:
    model = MakeModel("models/small/seed_0", tmp_path, ("sample",))
    write_text(MakeModel.cache(model.path) / "misconceptions-0123" / "config.json", "{}")
    model.collect("")
    assert (tmp_path / "models/small/seed_0/config.json").is_file() and model.finished
    scores = PassAtK("pass_at_k/a/seed_0.json", tmp_path, ("eval",))
    scores.collect('a word before\n{\n  "pass_at_1": 0.5\n}\n')
    assert json.loads(scores.path.read_text()) == {"pass_at_1": 0.5}


@dataclass(frozen=True)
class Note(Job):
    """Keeps what the command said."""

    def collect(self, stdout: str) -> None:
        write_text(self.path, stdout)


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = ("validate", str(SANDBOX))
    jobs = [
        Note("bad.txt", tmp_path, (*good, "train.steps=none")),
        Note("needs_bad.txt", tmp_path, good, needs=("bad.txt",)),
        Note("good.txt", tmp_path, good),
        Note("needs_good.txt", tmp_path, good, needs=("good.txt",)),
    ]
    seen: list[set[str]] = []
    failures = run_jobs(jobs, STEPS, lambda known: seen.append(set(known)))
    assert set(failures) == {"bad.txt", "needs_bad.txt"}
    assert "exit code 2" in failures["bad.txt"] and "train.steps" in failures["bad.txt"]
    assert failures["needs_bad.txt"] == "it needs bad.txt, which is not finished"
    assert "valid" in (tmp_path / "needs_good.txt").read_text()
    assert [len(known) for known in seen] == [1, 2, 2, 2]
    capsys.readouterr()
    run_jobs(jobs[2:], STEPS, lambda known: None)
    assert capsys.readouterr().out == "2 jobs, 2 of them finished\n"


def test_time_left_comes_from_jobs_of_the_kind(tmp_path: Path) -> None:
    clock, train = Clock(steps=10), Train("t", tmp_path, ())
    guess = clock.left([train])
    clock.add(train, 100.0)
    clock.add(train, 300.0)
    assert clock.left([train, train]) == timedelta(seconds=400) != 2 * guess
    assert clock.left([PassAtK("p", tmp_path, ())]) > timedelta(0)


_SAVES = """
import signal, sys, time
def save(number, frame):
    print("saved", file=open(sys.argv[1], "w"))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
print("ready", file=open(sys.argv[2], "w"))
time.sleep(60)
"""


@dataclass(frozen=True)
class Script(Job):
    """Runs a program of its own in place of a command."""

    def arguments(self) -> tuple[str, ...]:
        return self.command


def test_jobs_run_side_by_side_and_save_on_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first", "second")
    python = tmp_path / "python"  # takes the place of `python -m megatron_cgrpo`
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    jobs = [Script(n, tmp_path, (_SAVES, str(tmp_path / f"{n}.saved"), str(tmp_path / f"{n}.ready"))) for n in names]

    def stop() -> None:
        while not all((tmp_path / f"{name}.ready").exists() for name in names):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted):
        run_jobs(jobs, STEPS, lambda known: None, at_once=2)
    assert [(tmp_path / f"{name}.saved").read_text() for name in names] == ["saved\n", "saved\n"]
    assert signal.getsignal(signal.SIGTERM) == before


TINY = [
    *TINY_SANDBOX,
    "warm_start.steps=120",
    "rollout.engines=1",
    "train.prompts_per_step=8",
    "algorithm.group_size=3",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


def run_study(out: Path, steps: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "paper_study.py"), "--out", str(out / "study"), "--seeds", "0"]
    command += ["--tables", "compute", "--steps", str(steps), "--", *TINY]
    environment = os.environ | {"MCGRPO_CACHE": str(out / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        stdout, stderr = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()  # and not kill, which would leave its run behind
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def first(small: Path) -> subprocess.CompletedProcess[str]:
    """The first of three runs cannot begin: its directory holds something else."""
    write_text(small / "study" / "r1_drgrpo" / "seed_0" / "something", "else")
    return run_study(small)


def test_a_failing_arm_does_not_stop_the_others(small: Path, first: subprocess.CompletedProcess[str]) -> None:
    assert first.returncode == 1
    assert "failed: r1_drgrpo/seed_0: exit code 2" in first.stderr and "holds an earlier run" in first.stderr
    assert (small / "study" / "critique_grpo" / "seed_0" / "summary.json").is_file()
    # Its limit is five times as many steps; without refinements a step costs less, but not that much less.
    summary = json.loads((small / "study" / "equal_compute" / "seed_0" / "summary.json").read_text())
    assert 1 <= summary["steps"] <= 10


def test_the_report_says_so(small: Path, first: subprocess.CompletedProcess[str]) -> None:
    command = [sys.executable, "-m", "megatron_cgrpo", "report", str(small / "study"), "--out", str(small / "report")]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    text = (small / "report" / "report.md").read_text()
    assert "(R1-DrGRPO): failed: exit code 2" in text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["R1-DrGRPO, equal steps"].startswith("| R1-DrGRPO, equal steps | 0 of 1 | –")
    assert "| C-GRPO, CoT, γ 0.01 | 1 of 1 | " in text
    assert "GRPO at the compute of C-GRPO, CoT, γ 0.01 | 1 of 1" in text
    assert "mcgrpo analyse" in text and "models/base/seed\\_0.txt" in text


def test_other_settings_are_refused(small: Path, first: subprocess.CompletedProcess[str]) -> None:
    result = run_study(small, steps=3)
    assert result.returncode == 2
    assert "critique_grpo/seed_0 was started with other settings" in result.stderr


def test_it_goes_on_where_it_was_left(small: Path, first: subprocess.CompletedProcess[str]) -> None:
    kept = (small / "study" / "equal_compute" / "seed_0" / "metrics.jsonl").stat().st_mtime_ns
    interrupted = small / "study" / "critique_grpo" / "seed_0"
    (interrupted / "summary.json").unlink()
    lines = (interrupted / "metrics.jsonl").read_text()
    result = run_study(small)
    assert "7 jobs, 4 of them finished" in result.stdout
    assert [line for line in result.stderr.splitlines() if "critique_grpo/seed_0" in line] == []
    assert (interrupted / "summary.json").is_file() and (interrupted / "metrics.jsonl").read_text() == lines
    assert (small / "study" / "equal_compute" / "seed_0" / "metrics.jsonl").stat().st_mtime_ns == kept
    assert result.returncode == 1 and "failed: r1_drgrpo/seed_0" in result.stderr  # its directory is still not empty
