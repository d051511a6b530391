"""What a study consists of, kept in ``study.json`` over all the calls that make it, some of them at once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from study.paper import TABLES
from study.plan import Plan

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.report.study import Study, StudyArm, StudyScores, read_study, write_study

LOCK = ".study.lock"


@dataclass(frozen=True)
class Record:
    """``plan`` is what this call does, as ``command`` asked for it."""

    plan: Plan
    command: str

    def begin(self) -> None:
        """Raises ConfigError, before anything is written, where a job was begun with another or an unknown command."""
        with _locked(self.plan.out):
            earlier = read_study(self.plan.out)
            _check_unchanged(self.plan, earlier)
            write_study(self.plan.out, merged(earlier, self.plan.study(self.command, {})))

    def update(self, failures: Mapping[str, str]) -> None:
        """``failures`` are those of this call, by the name of the job."""
        with _locked(self.plan.out):
            write_study(self.plan.out, merged(read_study(self.plan.out), self.plan.study(self.command, failures)))


def merged(earlier: Study | None, now: Study) -> Study:
    """Everything that either has; of what both have, ``now``'s."""
    if earlier is None:
        return now
    tables = {table.name: table for table in (*earlier.tables, *now.tables)}
    order = [table.name for table in TABLES.values()]
    return Study(
        title=now.title,
        commands=tuple(dict.fromkeys((*earlier.commands, *now.commands))),
        arms=earlier.arms | {name: _merged_arm(earlier.arms.get(name), arm) for name, arm in now.arms.items()},
        tables=tuple(sorted(tables.values(), key=lambda table: order.index(table.name) if table.name in order else -1)),
        rescue=tuple(dict.fromkeys((*earlier.rescue, *now.rescue))),
        pass_at_k=_merged_scores(earlier.pass_at_k, now.pass_at_k),
        self_critique=_merged_scores(earlier.self_critique, now.self_critique),
        notes=earlier.notes | now.notes,
        jobs=earlier.jobs | now.jobs,
    )


def _merged_arm(earlier: StudyArm | None, now: StudyArm) -> StudyArm:
    runs = {run.directory: run for arm in (earlier, now) if arm is not None for run in arm.runs}
    return StudyArm(label=now.label, runs=tuple(sorted(runs.values(), key=lambda run: run.seed)))


def _merged_scores(earlier: tuple[StudyScores, ...], now: tuple[StudyScores, ...]) -> tuple[StudyScores, ...]:
    files: dict[str, dict[str, None]] = {}
    for model in (*earlier, *now):
        files.setdefault(model.label, {}).update(dict.fromkeys(model.files))
    return tuple(StudyScores(label=label, files=tuple(found)) for label, found in files.items())


def _check_unchanged(plan: Plan, earlier: Study | None) -> None:
    then, now = {} if earlier is None else earlier.jobs, plan.study("", {}).jobs
    problems = []
    for job in plan.jobs():
        if job.started and job.name not in then:
            problems.append((job, "is there, but study.json does not say how it was made"))
        elif job.started and then[job.name].command != now[job.name].command:
            problems.append((job, "was started with other settings (see study.json)"))
    if problems:
        raise ConfigError(
            [f"--out {plan.out}: {job.name} {why}: name another --out, or remove {job.path}" for job, why in problems]
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Alone among the calls that make this study; the lock goes with the process that holds it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
