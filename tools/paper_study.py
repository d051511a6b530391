"""The paper's tables in miniature, on the sandbox task: trains and measures what is missing for `mcgrpo report`.

    python tools/paper_study.py --out runs/study --seeds 0 1 2           # all of it: some hours on two cores
    python tools/paper_study.py --out runs/study --tables 2 6 --dry-run  # what would be done
    mcgrpo report runs/study --out runs/study/report

Each run has one engine and one rank, and two run at once; the other way round it is
`--at-once 1 -- rollout.engines=2 parallel.tp=2`. Finished jobs are kept, interrupted runs are resumed, and a job that
fails does not stop the others: it is named at the end, with exit code 1. Ctrl-C saves what runs. A seed has its own
misconceptions, base models and prompts, which all its arms share; an arm that several tables need is trained once.
Several calls with other seeds or tables make one study; those that run at the same time must have different seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from study.arms import ARMS
from study.paper import CHOICES
from study.plan import Plan, shell
from study.record import Record
from study.runner import Clock, Interrupted, run_jobs

from megatron_cgrpo.config.errors import ConfigError
from megatron_cgrpo.observe.atomic import write_text

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
    parser.add_argument("--at-once", type=int, default=2, help="jobs that run side by side")
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
    record = Record(plan, shlex.join(["python", *sys.argv]))
    record.begin()
    for arm in plan.arms:
        write_text(plan.out / arm / "label", ARMS[arm].label + "\n")
    return run_jobs(plan.jobs(), plan.steps, record.update, at_once)


if __name__ == "__main__":
    sys.exit(main())
