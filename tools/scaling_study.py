"""Scaling studies: strong and weak scaling, layouts, FP8, critique, lengths, group sizes and sizes of the model.

    python tools/scaling_study.py --out runs/scaling            # the benchmark's model, on two cores
    python tools/scaling_study.py --out runs/scaling --quick    # whether it works; its figures mean nothing
    python tools/scaling_study.py --out runs/scaling --most 1   # one run of what is missing, and the summary so far
    python tools/scaling_study.py --out runs/large --recipe examples/qwen3_32b.yaml --growth 1 2 --gpu h200
    python tools/scaling_study.py --out runs/mine --file study.yaml    # points of your own

A point is a recipe with overrides. What this machine can run is trained by `mcgrpo train` (`source: measured`), what it
cannot is planned (`source: planned`), and the two are never compared, fitted or joined by a line. Points take turns,
there and back, a seed a repetition. Every repetition becomes a line of `raw.jsonl`; called again, the script does what
is missing. `summary.json`, `summary.md` and `summary.png` are of all that is there. What fails costs the rest nothing,
but the exit code is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from scaling.arrays import array_commands
from scaling.choice import choose
from scaling.hardware import Hardware
from scaling.planned import Plans
from scaling.plots import plot
from scaling.points import Study, shared
from scaling.records import Record, Records, alone
from scaling.runner import Todo, todo, work
from scaling.runs import Runs
from scaling.studies import STUDIES, Basis
from scaling.study_file import read_study_file
from scaling.summary import markdown, summarise, write_summary

from megatron_cgrpo.config import ConfigError

USUAL = ("strong", "weak", "layouts", "critique", "lengths", "groups", "models")


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is running is ended, too
    try:
        with alone(options.out.absolute()):
            return _study(options)
    except ConfigError as error:
        print("\n".join(f"error {problem}" for problem in error.problems), file=sys.stderr)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), help=f"without: {' '.join(USUAL)}")
    parser.add_argument("--file", type=Path, nargs="+", default=[], help="studies of your own, in YAML")
    parser.add_argument("--recipe", type=Path, nargs="+", default=[], help="instead of the benchmark's model")
    parser.add_argument("--source", choices=("auto", "real", "plan"), default="auto")
    parser.add_argument("--gpu", help="kind of GPU that points are planned for, and that MFU is of: h100, h200, …")
    parser.add_argument("--assume", nargs="+", default=[], metavar="KEY=VALUE", help="of the planner")
    parser.add_argument("--gpus", type=int, help="of the cluster that runs belong to; without: those of this machine")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2], help="devices: so many times the recipe's")
    parser.add_argument(
        "--growth", type=int, nargs="+", default=[1, 2, 4], help="lengths and group sizes: so many times"
    )
    parser.add_argument("--steps", type=int, default=3, help="that count in a run")
    parser.add_argument("--repeats", type=int, default=2, help="of each run")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="of one run, start-up included")
    parser.add_argument("--most", type=int, help="runs of this call; 0: only the summary of what is there")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two steps, no repetition")
    parser.add_argument(
        "--print-jobs", type=int, metavar="GPUS", help="only print Slurm job arrays of the missing runs, GPUS a node"
    )
    parser.add_argument("--collect", metavar="MACHINE", help="take over what such arrays have run, on MACHINE")
    options = parser.parse_args()
    for name in ("steps", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least one is needed")
    for name in ("factors", "growth"):
        if (given := sorted(set(getattr(options, name))))[0] != 1:
            parser.error(f"--{name}: has no 1, which the others are compared with: add it; and no number below")
        setattr(options, name, tuple(given))
    if options.quick:
        options.steps, options.repeats = min(options.steps, 2), 1
    return options


def _study(options: argparse.Namespace) -> int:
    out = options.out.absolute()
    basis = Basis(out, tuple(options.recipe), options.factors, options.growth, options.quick, options.gpu)
    names = options.study or (() if options.file else _usual(options))
    studies = shared([STUDIES[name](basis) for name in names] + [read_study_file(path) for path in options.file])
    runs = Runs(out, options.steps, options.limit_s, options.gpu)
    plans = Plans(out, options.gpu, tuple(options.assume))
    choices = choose(studies, options.source, Hardware.here(options.gpus), runs, plans)
    records = Records(out)
    records.check(choices)
    waiting = todo(choices, options.repeats, records)
    if options.print_jobs is not None:
        print("\n".join(array_commands(waiting, runs, options.print_jobs)))
        return 0
    if options.collect is not None:
        _collect(waiting, runs, options.collect, records)
        waiting = []

    def make(each: Todo) -> Record:
        if each.choice.source == "planned":
            return plans.make(each.choice.point, each.choice.reason)
        return runs.measure(each.choice.point, each.repeat)

    failures = work(waiting[: options.most], make, records)
    _tell(studies, records, out)
    left = len(todo(choices, options.repeats, records))
    print(f"{left} to do" if left else f"complete: {out}", file=sys.stderr)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _usual(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name in USUAL if name != "models" or len(options.recipe) != 1)


def _collect(waiting: list[Todo], runs: Runs, machine: str, records: Records) -> None:
    for each in waiting:
        if each.choice.source == "measured":
            record = runs.collect(each.choice.point, each.repeat, machine)
            if record is not None:
                records.add(record)


def _tell(studies: list[Study], records: Records, out: Path) -> None:
    summary = summarise(studies, records.all)
    write_summary(out, summary)
    plot(summary, out / "summary.png")
    print(markdown(summary))


if __name__ == "__main__":
    sys.exit(main())
