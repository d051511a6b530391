"""The paper's tables in miniature, on the sandbox task: trains and measures what is missing for `mcgrpo report`.

    python tools/paper_study.py --out runs/study --seeds 0 1 2           # all of it: 3 to 4 hours on two idle cores
    python tools/paper_study.py --out runs/study --tables 2 6 --dry-run  # what would be done
    mcgrpo report runs/study --out runs/study/report

Where a run is given one engine and one rank (`-- rollout.engines=1 parallel.tp=1`), two at once (`--at-once 2`) use two
cores better. Finished jobs are kept, interrupted runs are resumed, and a job that fails does not stop the others: it is
named at the end, with exit code 1. Ctrl-C saves what runs. A seed has its own misconceptions, base models and
prompts, which all its arms share; an arm that several tables need is trained once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from study.paper import CHOICES
from study.plan import Plan, shell
from study.runner import Clock, Interrupted, run_jobs

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_text
from megatron_cgrpo.report.study import read_study, write_study

INTERRUPTED = 130


def main() -> int:
    options = _options()
    plan = Plan(
        out=options.out.absolute(),
        seeds=tuple(dict.fromkeys(options.seeds)),
        tables=tuple(name for name in CHOICES if name in options.tables),
        steps=options.steps,
        overrides=tuple(options.overrides),
    )
    if options.dry_run:
        return _describe(plan, options.at_once)
    try:
        failures = _study(plan, options.at_once)
    except ConfigError as error:
        print("\n".join(f"error {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except Interrupted:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    print(f"report: mcgrpo report {shlex.quote(str(options.out))} --out {shlex.quote(str(options.out / 'report'))}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--steps", type=int, default=40, help="of training, each run")
    parser.add_argument("--at-once", type=int, default=1, help="jobs that run side by side")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and their commands")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every job, after --")
    options = parser.parse_args()
    if options.at_once < 1:
        parser.error(f"--at-once {options.at_once}: at least one job has to run")
    if options.steps < 2:
        parser.error(f"--steps {options.steps}: two stages need at least 2")
    return options


def _describe(plan: Plan, at_once: int) -> int:
    jobs = plan.jobs()
    for job in jobs:
        state = "finished" if job.finished else "to be resumed" if job.started else "to do"
        print(f"{job.name}: {state}\n    {shell(job)}")
    waiting = [job for job in jobs if not job.finished]
    print(f"{len(jobs)} jobs, {len(waiting)} to do, about {Clock(plan.steps, at_once).left(waiting)} on two idle cores")
    return 0


def _study(plan: Plan, at_once: int) -> dict[str, str]:
    _check_unchanged(plan)
    command = shlex.join(["python", *sys.argv])

    def record(failures: dict[str, str]) -> None:
        write_study(plan.out, plan.study(command, failures))

    record({})
    for arm, details in plan.study(command, {}).arms.items():
        write_text(plan.out / arm / "label", details.label + "\n")
    return run_jobs(plan.jobs(), plan.steps, record, at_once)


def _check_unchanged(plan: Plan) -> None:
    """Raises ConfigError where a run of an earlier study in the same place was started with other settings."""
    earlier = read_study(plan.out)
    if earlier is None:
        return
    now = plan.study("", {})
    started = {job.name for job in plan.jobs() if job.started}
    then = {run.directory: run.command for arm in earlier.arms.values() for run in arm.runs}
    problems = [
        f"--out {plan.out}: {run.directory} was started with other settings (see study.json): name another --out, or "
        f"remove {plan.out / run.directory}"
        for arm in now.arms.values()
        for run in arm.runs
        if run.directory in started and then.get(run.directory, run.command) != run.command
    ]
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
